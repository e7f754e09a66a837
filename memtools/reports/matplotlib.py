"""A timeline as a plot of matplotlib (extra `plot`), for notebooks and papers.

A file of its own because each adapter has the name of its library.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from memtools.errors import ConfigError, MissingExtraError
from memtools.reports._timeline_chart import ForecastFields, TimelineFields

_MIB = 2**20


def plot_timeline(
    timeline: TimelineFields,
    ax: Any = None,  # Any: matplotlib has no types of its own before 3.8
    *,
    forecast: ForecastFields | None = None,
    thresholds: Mapping[str, int] | None = None,
) -> Any:
    """Draw resident memory over time: the mean within the band from lowest to highest, limit, thresholds and events.

    Args:
        timeline: what is drawn, as `memtools.timelines.Timeline`.
        ax: the axes to draw on; by default those of a new figure.
        forecast: drawn from the last sample to the limit.
        thresholds: sizes in bytes by name, as dashed lines.

    Returns:
        The axes.

    Raises:
        MissingExtraError: when matplotlib is not installed.
        ConfigError: for a timeline without samples.
    """
    samples = timeline.samples
    if not samples:
        raise ConfigError("timeline", timeline, "a timeline with samples")
    axes = _new_axes() if ax is None else ax
    times = [_time(one.at_s) for one in samples]
    lowest, highest = ([size / _MIB for size in sizes] for sizes in _bounds(timeline))
    axes.fill_between(times, lowest, highest, alpha=0.25, linewidth=0, label="lowest to highest")
    axes.plot(times, [one.mean_bytes / _MIB for one in samples], label="resident")
    if timeline.limit_bytes is not None and timeline.limit_bytes <= 4 * _MIB * max(highest):
        axes.axhline(timeline.limit_bytes / _MIB, color="tab:red", label="limit")
    for name, size in (thresholds or {}).items():
        axes.axhline(size / _MIB, color="tab:orange", linestyle="--", label=name)
    for event in timeline.events:
        axes.axvline(_time(event.at_s), color="tab:purple", alpha=0.5, linewidth=0.8)
    if forecast is not None and forecast.seconds_to_limit is not None and timeline.limit_bytes is not None:
        first = samples[-1].lowest_bytes if forecast.floor_bytes is None else forecast.floor_bytes
        ends = [times[-1], _time(samples[-1].at_s + forecast.seconds_to_limit)]
        axes.plot(ends, [first / _MIB, timeline.limit_bytes / _MIB], linestyle=":", color="tab:red", label="forecast")
    axes.set_ylabel("MiB")
    axes.legend(loc="upper left")
    return axes


def _bounds(timeline: TimelineFields) -> tuple[list[int], list[int]]:
    samples = timeline.samples
    return [one.lowest_bytes for one in samples], [one.highest_bytes for one in samples]


def _new_axes() -> Any:
    try:
        # By its name: some tools would take `import matplotlib` for this file.
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    return pyplot.subplots(figsize=(10, 3))[1]


def _time(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)
