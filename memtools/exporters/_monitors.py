"""What the started monitors have seen and done, and what the process may use.

Leaves to others: watching (`memtools.monitor`), reading limits (`memtools.readings`). A monitor's statistics are copied
and read nothing anew. Without a monitor the limit and the headroom are read here: some hundred microseconds.
"""

from typing import TYPE_CHECKING

from memtools.errors import ConfigError
from memtools.monitor import MonitorStatistics, monitors
from memtools.readings import Level, effective_limit, headroom

if TYPE_CHECKING:
    from memtools.exporters._aggregates import Samples


def worst_level() -> Level | None:
    """Return the highest level of the monitors that are started, or None where there is none."""
    return max((monitor.level for monitor in monitors()), default=None)


def limit_bytes() -> int | None:
    """Return what this process may use: the least of what the monitors were told and found, else the effective limit.

    None where no limit is known, or `MEMTOOLS_LIMIT` is no size.
    """
    return _limit_of([monitor.statistics() for monitor in monitors()])


def headroom_bytes() -> int | None:
    """Return what is left to the first wall, negative beyond it; None where that is not known."""
    return _headroom_of([monitor.statistics() for monitor in monitors()])


def monitor_samples() -> "Samples":
    """Return the samples of monitors, limit and headroom."""
    found = [monitor.statistics() for monitor in monitors()]
    samples: Samples = {}
    for one in found:
        for family, value in _figures(one).items():
            samples.setdefault(family, {})[one.name,] = value
        for level in Level:
            samples.setdefault("monitor.changes", {})[one.name, level.name.lower()] = one.level_changes.get(level, 0)

    for family, room in (("effective.limit", _limit_of(found)), ("headroom", _headroom_of(found))):
        if room is not None:
            samples[family] = {(): room}
    return samples


def _figures(one: MonitorStatistics) -> dict[str, float]:
    return {
        "monitor.level": one.level,
        "monitor.operations": one.operations,
        "monitor.failures": one.failures,
        "pressure.signals": one.pressure_signals,
        "cleanup.climbs": one.cleanups,
        "cleanup.light": one.light_cleanups,
        "cleanup.freed": one.freed_bytes,
        "cleanup.duration": one.cleanup_s,
        "cleanup.ineffective": one.reclaims_in_vain,
        "admission.waiting": one.admissions.waiting,
        "admission.inside": one.admissions.inside,
        "gc.pause": one.pauses.total_s,
    }


def _limit_of(found: list[MonitorStatistics]) -> int | None:
    told = [one.limit.value_bytes for one in found if one.limit is not None and one.limit.value_bytes is not None]
    if told:
        return min(told)
    try:
        return effective_limit().value_bytes
    except ConfigError:
        return None  # what tells of the process shall not fail for a wrong word in its environment


def _headroom_of(found: list[MonitorStatistics]) -> int | None:
    told = [one.headroom.value_bytes for one in found if one.headroom is not None]
    known = [room for room in told if room is not None]
    if known:
        return min(known)
    try:
        return headroom().value_bytes
    except ConfigError:
        return None
