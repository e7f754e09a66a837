"""The figures of the process in one record: `collect_metrics`.

Covers: memory, processor, garbage collector, limit, headroom and level at one moment, for a log line or a page of one's
own. Leaves to others: the figures by scope and structure (`_aggregates`), servers of metrics (`prometheus`,
`opentelemetry`).
"""

import gc
import os
import time
from collections.abc import Callable
from typing import Final

from memtools._records import as_dict, record
from memtools.exporters._aggregates import headroom_bytes, limit_bytes, highest_level
from memtools.readings import Level, read_process
from memtools.units import format_size

# How busy the process was since somebody asked last.

_SHORTEST_S: Final = 0.1  # below it the clock of the processor is too coarse for a share; psutil's own advice


class CpuPercent:
    """The share of one core that this process used between two questions.

    Args:
        wall: monotonic seconds.
        cpu: processor seconds of all threads of this process.
        pid: the number of this process.

    Threads: safe; two that ask at once may get the share of the same time.
    """

    __slots__ = ("_cpu", "_mark", "_percent", "_pid", "_wall")

    def __init__(
        self,
        wall: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        pid: Callable[[], int] = os.getpid,
    ) -> None:
        self._wall = wall
        self._cpu = cpu
        self._pid = pid
        self._mark = (pid(), wall(), cpu())
        self._percent = 0.0

    def update(self) -> float:
        """Return the share in percent since the last question, over 100 with several busy threads.

        Within 0.1 s of the last question its answer is given again. The child of a fork begins anew, as its
        processor time does.
        """
        pid, then, used = self._mark
        now = (self._pid(), self._wall(), self._cpu())
        if now[0] != pid:
            self._mark, self._percent = now, 0.0
        elif now[1] - then >= _SHORTEST_S:
            self._mark, self._percent = now, max(0.0, 100 * (now[2] - used) / (now[1] - then))
        return self._percent


_MB = 10**6


@record
class Metrics:
    """How the process is at one moment.

    Attributes:
        rss_mb: resident memory in MB, which are 10^6 bytes here as everywhere in memtools.
        vms_mb: virtual memory in MB.
        cpu_percent: share of one core that the process used since the last call, in percent; the first call tells it
            since the import of memtools. Over 100 with several busy threads.
        gc_collections: runs of the garbage collector so far, by generation.
        gc_thresholds: `gc.get_threshold()`.
        limit_bytes: what the process may use: as the started monitors see it, else the effective limit; None where
            none is known.
        headroom_bytes: what is left to the first wall, negative beyond it; None where that is not known.
        level: the highest level of the started monitors; None where there is none.
        at: when, in seconds since the epoch.
    """

    rss_mb: float
    vms_mb: float
    cpu_percent: float
    gc_collections: tuple[int, ...]
    gc_thresholds: tuple[int, ...]
    limit_bytes: int | None
    headroom_bytes: int | None
    level: Level | None
    at: float

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold; the level by its name in small letters."""
        return as_dict(self) | {
            "gc_collections": list(self.gc_collections),
            "gc_thresholds": list(self.gc_thresholds),
            "level": None if self.level is None else self.level.name.lower(),
        }

    def __str__(self) -> str:
        left = "" if self.headroom_bytes is None else f", {format_size(self.headroom_bytes)} left"
        level = "" if self.level is None else f", {self.level.name.lower()}"
        return f"{format_size(self.rss_mb * _MB)} resident{left}{level}, {self.cpu_percent:.0f} % of a core"


_cpu_percent = CpuPercent()


def collect_metrics() -> Metrics:
    """Return how the process is now. Cheap enough for every few seconds; starts nothing.

    Threads: safe from any. Cost: some hundred microseconds, most of it for the headroom where no monitor keeps it.

    Raises:
        ReadingError: when the system does not say what is used.
    """
    memory = read_process()
    return Metrics(
        rss_mb=memory.resident_bytes / _MB,
        vms_mb=memory.virtual_bytes / _MB,
        cpu_percent=_cpu_percent.update(),
        gc_collections=tuple(generation["collections"] for generation in gc.get_stats()),
        gc_thresholds=gc.get_threshold(),
        limit_bytes=limit_bytes(),
        headroom_bytes=headroom_bytes(),
        level=highest_level(),
        at=time.time(),
    )
