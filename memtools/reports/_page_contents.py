"""What goes into the page of a report: owners, a monitor, a timeline, a diagnosis, and what is on the heap now."""

import gc
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from memtools.errors import ReadingError
from memtools.readings import Level, ResidentSplit
from memtools.reports._report import Report
from memtools.reports._report import report as take_report
from memtools.reports._timeline_chart import ForecastFields, TimelineFields
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.analysis import Trend
    from memtools.heap import HeapGrowth
    from memtools.heap._type_sizes import TypeSize
    from memtools.leaks import Diagnosis
    from memtools.monitor import MemoryMonitor, MonitorStatistics
    from memtools.monitor._report import Container

_MAX_CONTAINERS: Final = 10
_MIN_CONTAINER_BYTES: Final = 1 << 20


def html_page(
    report: Report | None = None,
    *,
    monitor: "MemoryMonitor | None" = None,
    timeline: TimelineFields | None = None,
    trend: "Trend | None" = None,
    forecast: ForecastFields | None = None,
    diagnosis: "Diagnosis | None" = None,
    growing: "Sequence[HeapGrowth]" = (),
    heap: bool = False,
    more: str = "",
) -> str:
    """Return a report as one HTML page that fetches nothing: for people, by mail, or from an endpoint.

    ```python
    from memtools.reports import html_page, report

    page = html_page(report(title="the importer"))
    assert page.startswith("<!doctype html>")
    ```

    A section appears only where there is something to show in it.

    Args:
        report: the owners and the process; by default those of this process, now.
        monitor: its level, limit, thresholds and recommendations are shown, too.
        timeline: resident memory over time, as `memtools.timelines.Timeline`; by default that of the monitor.
        trend: what the timeline says, as `memtools.analysis.judge_trend()` returns it: which owners' live bytes rise,
            what was out of the ordinary, suggested thresholds, and the forecast.
        forecast: when the limit will be reached, drawn into the timeline; by default that of the monitor or the trend.
        diagnosis: what leaks and what holds it, as `memtools.leaks.investigate()` returns it.
        growing: what grew between two counts of the heap, as `memtools.heap.growth_between()` returns it.
        heap: whether to look at the heap of this process as well: the largest containers and where they are made, the
            objects by type, what resident memory consists of, and with a `monitor` what to change.
        more: HTML that comes behind it, as it is.

    Raises:
        ReadingError: when the memory of the process cannot be read, for a report that is taken now.

    Threads: safe. Cost: some 20 ms for 500 owners and a week of samples. With `heap` it walks all objects under the
    GIL, some 3 s for each million: in a service call it in a thread (`asyncio.to_thread`), and rarely.
    """
    from memtools.reports._page import PageFields, page_html  # only who writes a page needs it

    taken = report
    if taken is None:
        taken = take_report(title="this process" if monitor is None else monitor.name)
    seen = None
    if monitor is not None:
        seen = monitor.statistics()
        timeline, forecast = timeline or monitor.timeline, forecast or monitor.forecast
    containers, advice, types, split = _heap(seen) if heap else ((), (), (), None)
    return page_html(
        PageFields(
            report=taken,
            identity=taken.identity,
            at_s=taken.at_s,
            duration_s=taken.duration_s,
            headline=() if seen is None else _figures(seen),
            sentences=() if seen is None else _sentences(seen),
            timeline=timeline,
            trend=trend,
            forecast=trend.forecast if forecast is None and trend is not None else forecast,
            thresholds=None if seen is None else _thresholds(seen),
            diagnosis=diagnosis,
            growing=growing,
            containers=containers,
            types=types,
            split=split,
            advice=advice,
            more=more,
        )
    )


def _heap(
    seen: "MonitorStatistics | None",
) -> "tuple[tuple[Container, ...], tuple[str, ...], tuple[TypeSize, ...], ResidentSplit | None]":
    from memtools.heap._type_sizes import sizes_by_type
    from memtools.monitor._report import recommendations, sized_containers

    with _no_collection():
        split = _split()
        containers = sized_containers(_MAX_CONTAINERS)
        advice = () if seen is None else tuple(map(str, recommendations(seen, containers)))
        types = sizes_by_type()
    shown = tuple(one for one in containers if one.held_bytes >= _MIN_CONTAINER_BYTES)
    return shown, advice, types, split


def _split() -> ResidentSplit | None:
    from memtools.readings import split_resident

    try:
        return split_resident()
    except ReadingError:  # another system than Linux, or no descriptor left
        return None


@contextmanager
def _no_collection() -> Generator[None, None, None]:
    """Start no garbage collection in the block: a walk makes garbage, and none of the program's is to end by it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _figures(seen: "MonitorStatistics") -> tuple[tuple[str, str], ...]:
    figures = [("level", seen.level.name)]
    if seen.limit is not None and seen.limit.value_bytes is not None:
        figures.append(("limit", format_size(seen.limit.value_bytes)))
    if seen.headroom is not None and seen.headroom.value_bytes is not None:
        figures.append(("headroom", format_size(seen.headroom.value_bytes)))
    if seen.operations:
        figures.append(("operations", f"{seen.operations:,}"))
    figures.append(("clean-ups", f"{seen.cleanups:,}"))
    return tuple(figures)


def _sentences(seen: "MonitorStatistics") -> tuple[tuple[str, str], ...]:
    if seen.level is Level.NORMAL:
        return ()
    ineffective = (
        f"; clean-ups that were not enough: {seen.ineffective_reclaims:,}" if seen.ineffective_reclaims else ""
    )
    return (("bad", f"memory has been at {seen.level.name} for {seen.level_since_s:.0f} s{ineffective}"),)


def _thresholds(seen: "MonitorStatistics") -> dict[str, int]:
    found = {"warning": seen.warning_bytes, "critical": seen.critical_bytes}
    return {name: size for name, size in found.items() if size is not None}
