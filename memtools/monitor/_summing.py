"""Put together what the parts of a monitor have counted.

Threads: safe; each part is copied by itself, so the parts may be a moment apart.
"""

from math import inf

from memtools.monitor._keeper import Keeper
from memtools.monitor._statistics import MonitorStatistics
from memtools.monitor._thresholds import Marks
from memtools.readings import Level


def sum_up(keeper: Keeper) -> MonitorStatistics:
    """Return the statistics of a monitor."""
    lookout, relief, now = keeper.lookout, keeper.relief, keeper.gauges.clock()
    operations = keeper.operations.statistics()
    callbacks = tuple(callback.statistics(now) for callback in keeper.callbacks.alive())
    return MonitorStatistics(
        name=keeper.name,
        level=lookout.level,
        level_since_s=max(0.0, now - lookout.level_since),
        reading=lookout.reading,
        limit=lookout.limit,
        headroom=lookout.headroom,
        warning_bytes=_entry(lookout.marks, Level.WARNING),
        critical_bytes=_entry(lookout.marks, Level.CRITICAL),
        beat=keeper.beat_kind,
        interval_s=lookout.interval_s,
        operations=sum(one.calls for one in operations),
        failures=sum(one.failures for one in operations),
        looks=lookout.looks,
        missed_looks=lookout.missed,
        level_changes=dict(lookout.entered),
        cleanups=relief.cleanups,
        light_cleanups=relief.light_cleanups,
        freed_bytes=relief.freed_bytes,
        cleanup_s=relief.cleanup_s,
        reclaims_in_vain=relief.in_vain,
        pressure_signals=relief.pressure_signals,
        callback_failures=sum(one.failures for one in callbacks),
        callbacks_broken=sum(one.is_broken for one in callbacks),
        admissions=keeper.row.statistics(),
        pauses=keeper.pauses.statistics(),
        by_operation=operations,
        callbacks=callbacks,
    )


def _entry(marks: Marks, level: Level) -> int | None:
    mark = marks.by_level.get(level)
    return None if mark is None or mark.entry_bytes == inf else int(mark.entry_bytes)
