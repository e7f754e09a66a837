"""The text, HTML and JSON of a report: width, columns, escaping."""

import io
import json
import sys
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools._text import display_width, printable, truncate_middle
from memtools.ledger import AccountStatistics, Usage
from memtools.ledger._ledger import LedgerStatistics
from memtools.reports import Report, Row, UsageTable, html_page, report
from memtools.reports._rows import Growth
from memtools.reports._text import draw_bar, format_mib, format_seconds, share_of

Make = Callable[..., AccountStatistics]
Ledger = Callable[..., LedgerStatistics]
NASTY = "</td><script>alert('x')</script>\x1b[31m\u202egnp.exe\u2066\r\n\x00\u200b&amp;\ud800\x9b2J"
LONG = "a" * 150 + "the-end"


@pytest.fixture
def taken(account: Make, ledger: Ledger) -> Report:
    inner = account("scope", NASTY, peak=2.5, retained=-0.25, note="other threads ran meanwhile")
    root = account(
        "scope", "root", peak=10, started=1, duration_s=12.3, children=(inner, account("task", LONG, failed=2))
    )
    return report(title="my program", ledger=ledger(root, account("call", "größe 漢字", peak=5, started=12_345)))


def _row(name: str) -> Row:
    return Row(name, 1, 0, 0, 1, 1, 0.1, ("tracemalloc",), ())


@pytest.mark.parametrize("width", [80, 97, 120, 140])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_text_lines_fit_the_terminal(taken: Report, width: int, ascii_only: bool) -> None:
    text = taken.to_text(width=width, ascii_only=ascii_only)

    assert max(map(display_width, text.splitlines())) <= width
    assert text.isascii() == ascii_only


def test_caveats_are_whole_in_every_form(ledger: Ledger) -> None:
    caveat = f"child processes <1> {'were started ' * 20}\x1b[31m"

    found = report(ledger=ledger(), caveats=(caveat,))

    assert found.to_text(width=80).splitlines()[-1] == f"! {printable(caveat)}"
    assert json.loads(found.to_json())["caveats"] == [caveat]
    assert "child processes &lt;1&gt;" in html_page(found)
    assert json.loads(report(ledger=ledger()).to_json())["caveats"] == []


def test_text_figures_are_aligned_in_columns(taken: Report) -> None:
    lines = taken.to_text(width=100, ascii_only=False).splitlines()
    heading = next(line for line in lines if line.startswith("function"))
    row = next(line for line in lines if line.startswith("größe"))

    column = heading.index("peak MiB") + len("peak MiB")
    assert display_width(row[: row.index("5.00") + 4]) == column


def test_text_width_is_the_terminals_between_bounds(taken: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {}
    for columns in ("20", "100", "500"):
        monkeypatch.setenv("COLUMNS", columns)
        widths[columns] = max(map(display_width, str(taken).splitlines()))

    assert widths["20"] <= 80
    assert 80 < widths["100"] <= 100
    assert 100 < widths["500"] <= 140


def test_inexact_figures_are_marked_and_explained_once(taken: Report) -> None:
    text = taken.to_text(width=100, ascii_only=False)

    assert "~2.50" in text
    assert "~-0.25" in text
    assert text.count("other threads ran meanwhile") == 1
    assert "(1 row)" in text


def test_long_name_is_truncated_in_the_middle(taken: Report) -> None:
    text = taken.to_text(width=80, ascii_only=False)

    assert LONG not in text
    assert "aaa…" in text
    assert "the-end" in text


def test_failed_and_open_columns_are_hidden_when_zero(taken: Report) -> None:
    text = taken.to_text(width=100, ascii_only=False)

    scopes, tasks = text.index("scope  "), text.index("task  ")
    assert "failed" not in text[scopes:tasks]
    assert "failed" in text[tasks:]
    assert " open" not in text


def test_rows_beyond_the_limit_are_counted(account: Make, ledger: Ledger) -> None:
    taken = report(ledger=ledger(*(account("task", f"t{n}") for n in range(50))))

    text = taken.to_text(width=80, ascii_only=False, limit=20)

    assert "… and 30 more" in text
    assert len(taken.to_dict()["tasks"]) == 50


def test_text_contains_no_control_characters_of_names(taken: Report) -> None:
    for text in (str(taken), taken.to_text(width=140, ascii_only=False), repr(taken)):
        harmful = {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} and c != "\n"}
        assert harmful == set()
    assert "\n" not in repr(taken)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_escapes_every_name(taken: Report) -> None:
    parser = _Tags()
    parser.feed(taken._repr_html_())

    assert parser.tags.count("table") == 1
    assert set(parser.tags) == {"table", "caption", "tbody", "tr", "th", "td", "div"}
    assert "<script>alert('x')</script>\\x1b[31m\\u202egnp.exe" in parser.text
    assert "größe 漢字" in parser.text
    html_page(taken).encode("utf-8")


def test_html_page_follows_the_readers_colour_scheme(taken: Report) -> None:
    page = html_page(taken)

    assert page.startswith("<!doctype html>")
    assert 'content="light dark"' in page
    assert "my program" in page


def test_json_has_every_row_with_its_name_unchanged(taken: Report) -> None:
    read = json.loads(taken.to_json())

    assert read == json.loads(json.dumps(taken.to_dict()))
    assert taken.to_json().isascii()
    assert read["scopes"][0]["children"][0]["name"] == NASTY
    assert read["functions"][0]["calls"] == 12_345
    assert read["process"]["resident_bytes"] == taken.process.resident_bytes


def test_str_can_be_printed_to_an_ascii_stream(taken: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)

    print(taken)

    stream.flush()
    assert b"##" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_usage_table_keeps_the_given_order(usage: Callable[..., Usage]) -> None:
    table = UsageTable.of([usage("second <b>", peak=2), usage("first", peak=8, note="threads")])

    text = table.to_text(width=80, ascii_only=False)
    assert text.index("second <b>") < text.index("first")
    assert "~8.00" in text
    assert "threads" in text
    assert "second &lt;b&gt;" in table._repr_html_()
    assert [row["name"] for row in json.loads(table.to_json())["usages"]] == ["second <b>", "first"]
    assert repr(table) == "<UsageTable of 2, highest peak 8.0 MiB>"
    assert len(table) == 2
    assert [row.name for row in table] == ["second <b>", "first"]
    assert str(UsageTable(())).startswith("usage")


@given(st.text())
def test_printable_text_has_no_control_characters(name: str) -> None:
    shown = printable(name)

    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for c in shown)
    if name.isascii() and name.isprintable():
        assert shown == name


@given(st.text(), st.integers(3, 60))
def test_truncated_name_fits_and_keeps_both_ends(name: str, width: int) -> None:
    name = printable(name)

    shown = truncate_middle(name, width)

    assert display_width(shown) <= width
    if shown != name:
        head, _, tail = shown.rpartition("…")
        assert name.startswith(head)
        assert name.endswith(tail)


@given(st.floats(0, 1), st.integers(5, 40), st.booleans())
def test_bar_length_is_its_fraction(fraction: float, width: int, ascii_only: bool) -> None:
    drawn = draw_bar(fraction, width, ascii_only=ascii_only)

    assert len(drawn) <= width
    assert bool(drawn) == (fraction > 0)
    assert abs(len(drawn) - fraction * width) <= 1


@given(st.text(), st.integers(80, 140), st.booleans())
def test_text_lines_fit_with_any_name(name: str, width: int, ascii_only: bool) -> None:
    taken = Report(name, (_row(name),), (_row(name),), (), Growth(1, 1))

    assert max(map(display_width, taken.to_text(width=width, ascii_only=ascii_only).split("\n"))) <= width


@pytest.mark.parametrize(("size", "text"), [(0, "0.00"), (-1, "0.00"), (2**20, "1.00"), (3 * 2**40, "3,145,728.00")])
def test_sizes_are_in_mebibytes(size: int, text: str) -> None:
    assert format_mib(size) == text


@pytest.mark.parametrize(("duration", "text"), [(0.0123, "0.012 s"), (12.34, "12.3 s"), (3723, "1:02:03")])
def test_durations_are_short(duration: float, text: str) -> None:
    assert format_seconds(duration) == text


def test_fraction_is_between_zero_and_one() -> None:
    assert (share_of(1, 0), share_of(-1, 2), share_of(3, 2)) == (0.0, 0.0, 1.0)
