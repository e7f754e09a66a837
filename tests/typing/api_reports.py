"""Types of reports, their pages and differences; checked by mypy and pyright, never run."""

from typing import assert_type

from memtools import MemoryMonitor
from memtools.analysis import judge_trend
from memtools.reports import OwnerChange, Report, ReportDiff, diff_reports, html_page, report, timeline_svg
from memtools.reports.matplotlib import plot_timeline
from memtools.timelines import Timeline


def pages(monitor: MemoryMonitor, timeline: Timeline) -> None:
    taken = report()
    assert_type(taken, Report)
    assert_type(taken.identity, tuple[tuple[str, str], ...])
    assert_type(html_page(taken, timeline=timeline, trend=judge_trend(timeline.samples)), str)
    assert_type(html_page(monitor=monitor, heap=True), str)
    assert_type(timeline_svg(timeline, forecast=monitor.forecast, thresholds={"warning": 1}), str)
    plot_timeline(timeline, forecast=monitor.forecast)


def differences(before: Report, after: Report) -> None:
    diff = diff_reports(before.to_dict(), after.to_dict())
    assert_type(diff, ReportDiff)
    assert_type(diff.largest, OwnerChange | None)
    assert_type(diff.above("10%"), tuple[str, ...])
