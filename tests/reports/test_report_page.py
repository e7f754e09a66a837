"""The page of a report: its sections, what it escapes, how much it weighs, and that it is valid and fetches nothing."""

import base64
import gc
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import html5lib
import pytest

from memtools.analysis import (
    Anomaly,
    Forecast,
    LeakKind,
    LeakVerdict,
    Leftover,
    OwnerTrend,
    SuggestedThresholds,
    Trend,
)
from memtools.errors import ReadingError
from memtools.heap import growth_between, heap_census
from memtools.heap._type_sizes import TypeSize
from memtools.leaks import Diagnosis, Leak
from memtools.ledger import AccountStatistics
from memtools.ledger._ledger import LedgerStatistics
from memtools.monitor import MemoryMonitor
from memtools.reports import Report, html_page, report
from memtools.timelines import Timeline

MIB = 2**20
NASTY = "</script><script>alert('x')</script>\x1b[31m\u202e<b title=\"y\">&amp;\ud800"
LEAK = Leak(LeakKind.PYTHON, 1.4 * MIB, f"dict +450 items/s {NASTY}", ("lru_cache wrapper", f"class {NASTY}"), NASTY)
LEAKING = Diagnosis(LeakVerdict(LeakKind.PYTHON, 1.4 * MIB, 900.0, 40.0, "blocks rise"), (LEAK,), note="one walk ended")
CLEAN = Diagnosis(LeakVerdict(LeakKind.NONE, 0.0, 0.0, 40.0, "nothing grew"), ())


class _Elements(HTMLParser):
    """The elements of a page, the text of each section by its heading, and what would be fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def _sections(page: str) -> list[str]:
    return re.findall(r"<details open><summary>([^<]*?) ?<", page)


@pytest.fixture
def nasty(account: Callable[..., AccountStatistics], ledger: Callable[..., LedgerStatistics]) -> Report:
    inner = account("scope", NASTY, peak=2, retained=1, note=NASTY)
    known = ledger(account("scope", "root", peak=9, children=(inner,)), account("call", NASTY, peak=3))
    return report(title=NASTY, ledger=known, caveats=(NASTY,), identity=(("command", NASTY),))


def test_page_has_a_section_for_each_kind_of_data(large_report: Report, week: Timeline, forecast: Any) -> None:
    taken = large_report.__replace__(leftovers=(Leftover("prices", "call", 4_100, 12_345, 49 * MIB),))  # type: ignore[attr-defined]
    page = html_page(taken, timeline=week, forecast=forecast(), diagnosis=LEAKING)

    assert _sections(page) == ["Leaks", "Resident memory", "Scopes", "Tasks", "Functions", "The process"]
    assert "`prices` leaves 12.1 KiB behind per call; 4,100 calls, 49.0 MiB live" in page
    assert "the limit in about 5 h, probably not before 3 h 40 min" in page
    assert "held by, the nearest first<ol class=path><li>lru_cache wrapper<li>class " in page
    assert "one walk ended" in page
    assert "python, +1.4 MiB/s" in page


def test_trend_tells_what_rises_and_what_was_odd(large_report: Report, week: Timeline) -> None:
    trend = Trend(
        None,
        Forecast(1.0, 7_200.0, None, None, 290 * MIB, "a fit"),
        SuggestedThresholds(400 * MIB, 450 * MIB, 112 * MIB, 70 * MIB, 168, f"it rises by {NASTY}"),
        (OwnerTrend(NASTY, 1.0, 5, 3.0, 7, f"{NASTY} grows by 12 MiB/h"),),
        (Anomaly("burst", week.samples[0].at_s, 3.0, 1, 2, f"a burst of {NASTY}"),),
    )

    page = html_page(large_report, timeline=week, trend=trend)

    assert "the limit in about 2 h: the floor rises by" in page
    assert "grows by 12 MiB/h<li>2027-01-15 08:00:00 UTC: a burst of &lt;/script&gt;" in page
    assert "<li>suggested thresholds: it rises by &lt;" in page
    assert 'class="tl-cone"' in page
    assert "What the curve says" in page
    nothing = Trend(None, trend.forecast, None, (), ())
    assert "What the curve says" not in html_page(large_report, timeline=week, trend=nothing)


def test_section_without_data_is_left_out(ledger: Callable[..., LedgerStatistics]) -> None:
    page = html_page(report(ledger=ledger(), identity=()), timeline=Timeline())

    assert _sections(page) == ["The process"]
    assert "<dt>process" not in page


def test_head_says_when_where_and_what(large_report: Report) -> None:
    text = _Elements(html_page(large_report)).text

    for words in ("2027-01-15 08:00:00 UTC", "7 d", "4711 on web-1", "python shop.py --token=***", "native"):
        assert words in text
    assert "resident peak320.0 MiB" in text
    assert "resident growth20.0 MiB" in text


def test_report_of_this_process_masks_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "shop.py", "--api-key=abc123", "redis://user:abc123@host"])

    page = html_page()

    assert "--api-key=***" in page
    assert "abc123" not in page


def test_clean_diagnosis_is_said() -> None:
    page = html_page(report(), diagnosis=CLEAN)

    assert '<p class="say good">no leak seen in 40 s: nothing grew' in page


def test_every_name_is_escaped(nasty: Report, week: Timeline) -> None:
    week.mark(NASTY, NASTY, at_s=week.samples[-1].at_s)
    page = html_page(nasty, timeline=week, diagnosis=LEAKING)
    elements = _Elements(page)

    assert elements.tags.count("script") == 1
    assert 'title="y"' not in page
    assert page.count("&lt;script&gt;alert(") >= 8
    assert "\x1b" not in page
    assert "\\x1b" in page
    page.encode("utf-8")


def test_page_fetches_nothing_and_says_so(whole_page: str) -> None:
    assert _Elements(whole_page).addresses == []
    assert "url(" not in whole_page
    assert "@import" not in whole_page
    assert "default-src 'none'" in whole_page


def test_policy_allows_exactly_the_script_of_the_page(large_report: Report) -> None:
    page = html_page(large_report)
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert f"script-src 'sha256-{digest}'" in page
    assert not re.search(r"\son[a-z]+=", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))


@pytest.mark.once
def test_page_is_valid_html(whole_page: str, nasty: Report) -> None:
    for page in (whole_page, html_page(nasty, diagnosis=LEAKING), html_page(report(), diagnosis=CLEAN)):
        html5lib.HTMLParser(strict=True).parse(page)  # raises for each parse error of the standard


def test_page_of_a_week_and_500_owners_is_small(large_report: Report, week: Timeline, forecast: Any) -> None:
    page = html_page(large_report, timeline=week, forecast=forecast(), diagnosis=LEAKING)

    assert len(page.encode()) <= 120 * 1024
    assert page.count("<tr>") >= 500


def test_bars_show_peak_and_live(large_report: Report) -> None:
    bars = re.findall(r"<i style=--p:([\d.]+)%;--l:([\d.]+)%>", html_page(large_report))

    assert bars[0] == ("100.0", "49.3")
    assert all(float(live) <= 100 for _, live in bars)


def test_columns_that_say_nothing_are_left_out(nasty: Report, large_report: Report) -> None:
    assert "live MiB" not in html_page(nasty)
    assert "retained MiB" in html_page(nasty)
    assert "live MiB" in html_page(large_report)
    assert "<th scope=col class=x>failed" not in html_page(large_report)


def test_rows_of_a_tree_carry_their_depth(large_report: Report) -> None:
    page = html_page(large_report)

    assert page.count("<th scope=row style=--d:1>/page/") == 60
    assert "<th scope=row>shop<" in page


class _Shop:
    pages: dict[int, bytes] = {}  # noqa: RUF012  # what a program does


def test_heap_shows_containers_types_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Shop, "pages", {number: bytes(2_000) for number in range(2_000)})

    page = html_page(report(), heap=True)

    assert "Largest containers" in page
    assert "_Shop.pages" in page
    assert "Objects by type" in page
    assert "<td class=t>bytes<td>" in page
    assert gc.isenabled()


@pytest.fixture
def small_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the walks over the heap find nothing, at once."""
    monkeypatch.setattr("memtools.monitor._report.sized_containers", lambda _: ())
    monkeypatch.setattr("memtools.heap._type_sizes.sizes_by_type", lambda: (TypeSize("Row", 3, 5 * MIB),))


def test_heap_without_a_split_goes_without_it(small_heap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ReadingError(24, "no descriptor is left")

    monkeypatch.setattr("memtools.readings.split_resident", refuse)

    page = html_page(report(), heap=True)

    assert "what resident memory consists of" not in page
    assert "Objects by type" in page


def test_collector_that_was_off_stays_off(small_heap: None) -> None:
    gc.disable()
    try:
        html_page(report(), heap=True)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_growth_of_the_heap_is_listed() -> None:
    before = heap_census()
    kept = [{"a": number} for number in range(5_000)]
    grown = growth_between(before, heap_census())

    page = html_page(report(), growing=grown)

    assert "Growing on the heap" in page
    assert "list +" in page
    del kept


def test_monitor_brings_level_limit_thresholds_and_advice(week: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = MemoryMonitor("1 MiB", "2 MiB", limit="900 MiB", name="shop")
    monkeypatch.setattr(_Shop, "pages", {number: bytes(2_000) for number in range(2_000)})
    monitor.check()

    page = html_page(monitor=monitor, timeline=week, heap=True)

    assert "<h1>shop</h1>" in page
    assert "<dt>level<dd>CRITICAL" in page
    assert "<dt>limit<dd>900.0 MiB" in page
    assert "memory has been at CRITICAL for" in page
    assert "What to change" in page
    assert "bound this dict" in page
    assert 'class="tl-critical"' in page


def test_monitor_at_rest_has_no_sentence() -> None:
    monitor = MemoryMonitor("80%", "90%", limit="900 GiB", name="shop")
    monitor.check()

    page = html_page(monitor=monitor)

    assert "<dt>level<dd>NORMAL" in page
    assert "memory has been at" not in page
    assert "What to change" not in page
