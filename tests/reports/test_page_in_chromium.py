"""The page of a report in a real browser: no error, no request, by keyboard, in both colour schemes, in any width."""

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from memtools.reports import Report, diff_reports
from memtools.reports._diff_forms import diff_page


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chromium = _load()
PROGRAM = chromium.find_chromium()

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(PROGRAM is None, reason=f"there is none of {', '.join(chromium.NAMES)} in the PATH"),
]
FOCUSED = "document.activeElement"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium.browser(PROGRAM, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """The tab, which has printed and fetched nothing at the end of the test."""
    browser.messages.clear()
    browser.requests.clear()

    yield browser

    assert browser.messages == []
    assert browser.requests == []


@pytest.fixture
def file(whole_page: str, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(whole_page, encoding="utf-8")
    return path


def _rows(page: Any, heading: str) -> list[str]:
    """The names of the visible rows of a table."""
    table = f"[...document.querySelectorAll('table.o')].find(t => t.tHead.textContent.startsWith({heading!r}))"
    names: list[str] = page.value(
        f"[...{table}.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    )
    return names


def _tab_to(page: Any, condition: str) -> None:
    """Press Tab until the focus is where it is wanted."""
    for _ in range(60):
        page.press("Tab")
        if page.value(f"(e => {condition})({FOCUSED})"):
            return
    raise AssertionError(f"the focus never came to {condition}")


@pytest.mark.parametrize(("width", "scheme"), [*itertools.product([400, 1400], ["light", "dark"])])
def test_page_fits_the_window_in_both_schemes(width: int, scheme: str, page: Any, file: Path, tmp_path: Path) -> None:
    page.open(file, width=width, scheme=scheme)
    page.screenshot(tmp_path / "shot.png")

    assert page.value("document.documentElement.scrollWidth") <= width
    assert (tmp_path / "shot.png").stat().st_size > 20_000
    paper = page.value("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme: str, page: Any, file: Path) -> None:
    page.open(file, scheme=scheme)
    # The relative luminance of WCAG 2.2, and 4.5 to 1 between text and what is behind it.
    contrast = page.value(
        "(() => {const light = c => {const [r, g, b] = c.match(/\\d+/g).map(v => (v /= 255) <= .04045 ? v / 12.92 : "
        "((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b};"
        "const behind = e => {for (; e; e = e.parentElement) {const c = getComputedStyle(e).backgroundColor;"
        "if (!c.endsWith(', 0)')) return c} return 'rgb(255, 255, 255)'};"
        "return Math.min(...[...document.querySelectorAll('h1,dt,dd,p,summary,small,th,td,li,button')]"
        ".filter(e => e.textContent.trim()).map(e => {const a = light(getComputedStyle(e).color), b = light(behind(e));"
        "return (Math.max(a, b) + .05) / (Math.min(a, b) + .05)}))})()"
    )

    assert contrast >= 4.5


def test_columns_sort_by_keyboard(page: Any, file: Path) -> None:
    page.open(file)
    _tab_to(page, "e.textContent === 'live MiB' && e.closest('table').tHead.textContent.startsWith('function')")
    assert page.value(f"getComputedStyle({FOCUSED}).outlineStyle") == "solid"

    page.press("Enter")
    descending = _rows(page, "function")
    sort = f"{FOCUSED}.parentElement.getAttribute('aria-sort')"
    assert page.value(sort) == "descending"
    page.press("Enter")

    assert page.value(sort) == "ascending"
    assert descending[:2] == ["shop.orders.prices.update_399", "shop.orders.prices.update_398"]
    assert _rows(page, "function")[:2] == ["shop.orders.prices.update_0", "shop.orders.prices.update_1"]


def test_rows_are_found_by_their_names(page: Any, file: Path) -> None:
    page.open(file)
    assert len(_rows(page, "function")) == 40
    _tab_to(page, "e.type === 'search' && e.closest('details').textContent.startsWith('Functions')")

    for key in "date_39":
        page.press(key)

    names = [f"shop.orders.prices.update_{number}" for number in (39, *range(390, 400))]
    assert sorted(_rows(page, "function")) == sorted(names)
    assert page.value(f"{FOCUSED}.closest('.tools').querySelector('[role=status]').textContent") == "11 of 400"


def test_all_rows_can_be_shown(page: Any, file: Path) -> None:
    page.open(file)
    _tab_to(page, "e.textContent === 'Show all 400'")

    page.press("Enter")

    assert len(_rows(page, "function")) == 400
    assert page.value(f"{FOCUSED}.textContent") == "Show 40"


def test_rows_below_a_scope_fold(page: Any, file: Path) -> None:
    page.open(file)
    _tab_to(page, "e.className === 'fold'")
    assert page.value(f"{FOCUSED}.getAttribute('aria-expanded')") == "true"
    assert page.value(f"{FOCUSED}.getAttribute('aria-label')") == "rows below shop"

    page.press("Enter")

    assert len(_rows(page, "scope")) == 1
    assert page.value(f"{FOCUSED}.getAttribute('aria-expanded')") == "false"


def test_sections_fold_by_keyboard(page: Any, file: Path) -> None:
    page.open(file)
    _tab_to(page, "e.tagName === 'SUMMARY'")
    page.press("Enter")

    assert page.value(f"{FOCUSED}.parentElement.open") is False


def test_page_is_whole_without_scripts(browser: Any, file: Path) -> None:
    browser.open(file, script=False)

    assert browser.value("document.querySelectorAll('tr').length") >= 500
    assert browser.value("document.querySelectorAll('button,input').length") == 0
    assert browser.requests == []


def test_diff_opens_without_errors(page: Any, large_report: Report, tmp_path: Path) -> None:
    path = tmp_path / "diff.html"
    path.write_text(diff_page(diff_reports(large_report.to_dict(), large_report.to_dict())), encoding="utf-8")

    page.open(path, width=400)

    assert page.value("document.documentElement.scrollWidth") <= 400
    assert len(_rows(page, "function")) == 40
