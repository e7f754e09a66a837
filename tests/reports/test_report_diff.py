"""The difference of two reports: what is compared, what is not, the sentence, the forms."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from memtools._text import display_width
from memtools.errors import ConfigError
from memtools.reports import Growth, Report, Row, diff_reports
from memtools.reports._diff_forms import diff_page, diff_text

pytestmark = pytest.mark.once

MIB = 2**20
NASTY = "</td><script>alert('x')</script>\x1b[31m\u202e"
Fields = dict[str, Any]


def _row(name: str, live: float | None = 0.0, *, calls: int = 1, peak: float = 1.0, **more: Any) -> Row:
    """A row counted by the native meter; sizes in MiB."""
    meters, notes = more.pop("meters", ("native",)), more.pop("notes", ())
    live_bytes = None if live is None else int(live * MIB)
    retained = int(more.pop("retained", live or 0.0) * MIB)
    children = more.pop("children", ())
    return Row(name, calls, 0, 0, int(peak * MIB), retained, 1.0, meters, notes, children, live_bytes, 0)


def _report(*functions: Row, title: str = "shop", owned: float | None = 10.0, **more: Any) -> Fields:
    process = Growth(50 * MIB, 60 * MIB, 20 * MIB, None if owned is None else int(owned * MIB), 0, None, 3 * MIB)
    taken = Report(title, more.pop("scopes", ()), more.pop("tasks", ()), functions, process, **more)
    return json.loads(taken.to_json())


def test_sentence_names_what_keeps_more() -> None:
    diff = diff_reports(_report(_row("parse", 3), _row("render", 1)), _report(_row("parse", 15), _row("render", 1)))

    assert diff.sentence == "the later one keeps 12.0 MiB more in `parse`: 3.0 MiB before, 15.0 MiB now (live)"
    assert [one.name for one in diff.owners] == ["parse", "render"]


def test_sentence_names_what_keeps_less() -> None:
    assert "12.0 MiB less in `parse`" in diff_reports(_report(_row("parse", 15)), _report(_row("parse", 3))).sentence


def test_sentence_prefers_the_innermost_function() -> None:
    def taken(size: float) -> Fields:
        return _report(
            _row("index", size * 1.1),
            _row("parse", size),
            tasks=(_row("main", size * 1.15),),
            scopes=(_row("app", size * 1.2),),
        )

    assert "in `parse`" in diff_reports(taken(1), taken(20)).sentence


def test_sentence_names_the_scope_where_no_function_has_it() -> None:
    before = _report(_row("parse", 1), scopes=(_row("app", 1, children=(_row("import", 1),)),))
    after = _report(_row("parse", 2), scopes=(_row("app", 30, children=(_row("import", 29.5),)),))

    assert "in `app > import`" in diff_reports(before, after).sentence


def test_small_changes_are_no_sentence() -> None:
    diff = diff_reports(_report(_row("parse", 3)), _report(_row("parse", 3.05)))

    assert diff.sentence == "no owner keeps 64.0 KiB more or less than before"
    assert diff.largest is None


def test_new_and_vanished_owners_are_compared_with_nothing() -> None:
    diff = diff_reports(_report(_row("old", 5)), _report(_row("new", 7)))

    changes = {one.name: (one.kept_change_bytes, one.peak_change_bytes) for one in diff.owners}
    assert changes == {"old": (-5 * MIB, -MIB), "new": (7 * MIB, MIB)}


def test_report_against_itself_has_no_change() -> None:
    taken = _report(_row("parse", 3), tasks=(_row("t", 1),), scopes=(_row("s", 1),))

    diff = diff_reports(taken, copy.deepcopy(taken))

    assert all(one.kept_change_bytes == one.peak_change_bytes == 0 for one in diff.owners)
    assert all(not figure.change_bytes for figure in diff.process)
    assert diff.above("0%") == ()
    assert diff.cautions == ()


class TestComparability:
    """What cannot be compared, and is said instead."""

    def test_different_meters_are_not_compared(self) -> None:
        before, after = _report(_row("parse", 3)), _report(_row("parse", None, retained=90, meters=("rss",)))

        diff = diff_reports(before, after)

        assert diff.owners[0].kept_change_bytes == diff.owners[0].peak_change_bytes == 0
        assert not diff.owners[0].is_comparable
        assert diff.sentence == "nothing can be said: the reports were counted by different meters"
        assert (
            "1 owner was counted by different meters (native before, rss now) and cannot be compared" in diff.cautions
        )
        assert "other meter" in diff_text(diff, width=100, ascii_only=True)
        assert diff.above("1 B") == ()

    def test_without_live_figures_the_retained_ones_count(self) -> None:
        rows = [_row("parse", None, retained=size, meters=("tracemalloc",)) for size in (3, 8)]

        diff = diff_reports(_report(rows[0]), _report(rows[1]))

        assert diff.sentence.endswith("5.0 MiB more in `parse`: 3.0 MiB before, 8.0 MiB now (retained)")
        assert any("retained at its end is compared instead" in caution for caution in diff.cautions)

    def test_inexact_figures_are_marked(self) -> None:
        diff = diff_reports(_report(_row("parse", 3)), _report(_row("parse", 8, notes=("threads ran",))))

        assert "about 5.0 MiB more" in diff.sentence
        assert any(caution.startswith("~ the figures of 1 owner are not exact") for caution in diff.cautions)
        assert "~+5.00" in diff_text(diff, width=100, ascii_only=True)

    def test_caveats_of_both_reports_are_passed_on(self) -> None:
        diff = diff_reports(_report(caveats=("a child was not seen",)), _report(caveats=("a meter stopped",)))

        assert diff.cautions == ("the earlier report: a child was not seen", "the later report: a meter stopped")


class TestAbove:
    """The limit for continuous integration."""

    @pytest.mark.parametrize(
        ("least", "count"),
        [("4 MiB", 1), ("5 MiB", 0), ("49%", 1), ("50%", 0), ("0%", 1), ("10485760", 0)],
    )
    def test_owner_above_is_told(self, least: str, count: int) -> None:
        diff = diff_reports(_report(_row("parse", 10)), _report(_row("parse", 15)))

        assert len(diff.above(least)) == count

    def test_higher_peak_counts_too(self) -> None:
        diff = diff_reports(_report(_row("parse", 1, peak=2)), _report(_row("parse", 1, peak=9)))

        assert diff.above("1 MiB") == ("function parse: peak 7.0 MiB more than 2.0 MiB",)

    def test_what_owners_hold_together_counts_too(self) -> None:
        found = diff_reports(_report(owned=10.0), _report(owned=15.0)).above("40%")

        assert found == ("held by owners: 5.0 MiB more than 10.0 MiB",)

    def test_percentage_of_little_is_of_one_mebibyte(self) -> None:
        diff = diff_reports(_report(), _report(_row("new", 0.05, peak=0.05)))

        assert diff.above("10%") == ()
        assert len(diff.above("4%")) == 2

    @pytest.mark.parametrize("least", ["", "x%", "-1%", "nan%", "inf%", "5 Mb", "%"])
    def test_limit_that_makes_no_sense_is_refused(self, least: str) -> None:
        with pytest.raises(ConfigError, match="fail_above"):
            diff_reports(_report(), _report()).above(least)


class TestFamilies:
    """Reports of runs with child processes."""

    @staticmethod
    def _child(size: float, title: str = "worker") -> Fields:
        return {"pid": 1, "title": title, "end": "ended", "report": _report(_row("parse", size), title=title)}

    def test_owners_of_children_of_one_title_are_summed(self) -> None:
        before = {**_report(_row("parse", 1)), "children": [self._child(2), self._child(3)]}
        after = {**_report(_row("parse", 1)), "children": [self._child(2), self._child(3), self._child(30)]}

        diff = diff_reports(before, after)

        assert "30.0 MiB more in `worker > parse`: 5.0 MiB before, 35.0 MiB now" in diff.sentence
        peaks = next(figure for figure in diff.process if figure.label == "peaks of child processes")
        assert (peaks.before, peaks.after) == (120 * MIB, 180 * MIB)

    def test_child_without_a_report_is_left_out(self) -> None:
        killed = {"pid": 2, "title": "worker", "end": "killed", "report": None}

        diff = diff_reports(_report(), {**_report(), "children": [killed, self._child(5)]})

        assert [one.name for one in diff.owners] == ["worker > parse"]


class TestRefusals:
    """What is no report."""

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"schema": None}, "no schema"),
            ({"schema": 2}, "schema 2.*schema 1"),
            ({"schema": True}, "schema True"),
            ({"title": 5}, "no title or process"),
            ({"process": []}, "no title or process"),
            ({"functions": {}}, "a list of rows"),
            ({"functions": [5]}, "rows that are objects"),
            ({"functions": [{"name": "x"}]}, "row 'x'"),
            ({"functions": [{"name": 5, "calls": 1, "peak_bytes": 1, "retained_bytes": 1}]}, "row 5"),
            ({"children": {}}, "a list of rows"),
            ({"children": [{"report": {"schema": 3}}]}, "schema 3"),
            ({"identity": []}, "objects"),
        ],
    )
    def test_dict_that_is_no_report_is_refused(self, change: Fields, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            diff_reports(_report(), {**_report(_row("parse")), **change})


class TestForms:
    """Text, JSON and HTML."""

    @pytest.fixture
    def diff(self) -> Any:
        def taken(size: float, host: str) -> Fields:
            rows = [_row(f"function {number}", size * number, calls=number) for number in range(30)]
            nasty, tree = _row(NASTY, size), _row("root", size, children=(_row(NASTY, size),))
            return _report(*rows, nasty, scopes=(tree,), title=NASTY, identity=(("process", host),))

        return diff_reports(taken(1, "1 on a"), taken(2, "1 on b"))

    @pytest.mark.parametrize("width", [80, 100, 140])
    @pytest.mark.parametrize("ascii_only", [False, True])
    def test_table_fits_the_terminal(self, diff: Any, width: int, ascii_only: bool) -> None:
        text = diff_text(diff, width=width, ascii_only=ascii_only)
        table = [line for line in text.splitlines() if line.startswith(("function", "root", "tasks"))]

        assert max(map(display_width, table)) <= width
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert text.isascii() or not ascii_only
        assert "and 10 more" in text
        assert "unchanged functions: 1" in text

    def test_page_is_escaped_and_whole(self, diff: Any) -> None:
        page = diff_page(diff)

        assert page.count("<script>") == 1
        assert page.count("&lt;script&gt;") >= 5
        assert "1 on a<td class=t>1 on b" in page
        assert page.count("<th scope=row>") == 33

    @pytest.mark.once
    def test_page_is_valid_html(self, diff: Any, large_report: Report) -> None:
        import html5lib

        for one in (diff, diff_reports(large_report.to_dict(), large_report.to_dict())):
            html5lib.HTMLParser(strict=True).parse(diff_page(one))

    def test_dict_can_be_json(self, diff: Any) -> None:
        fields = json.loads(json.dumps(diff.to_dict()))

        assert fields["sentence"] == diff.sentence
        assert fields["owners"][0]["before"]["meters"] == ["native"]
        assert fields["process"][0] == {
            "label": "resident now",
            "before": 50 * MIB,
            "after": 50 * MIB,
            "change_bytes": 0,
        }


def test_deep_trees_are_read(account: Callable[..., Any]) -> None:
    tree = _row("leaf", 1)
    for depth in range(150):
        tree = _row(f"scope {depth}", 1, children=(tree,))

    taken = _report(scopes=(tree,))

    assert len(diff_reports(taken, taken).owners) == 151
