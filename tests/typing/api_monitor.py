"""Types of the monitor; checked by mypy and pyright, never run."""

from typing import assert_type

from memtools import Level, MemoryMonitor, Reading
from memtools.events import LevelChanged
from memtools.monitor import Admission, MonitorStatistics, Recommendation, monitors
from memtools.scopes import task_scope

monitor = MemoryMonitor("60%", "80%", free=("200 MiB", "100 MiB"))


@monitor.watch
def plain(first: int, *, second: str = "") -> float:
    return first + len(second)


@monitor.watch(name="later")
async def later(first: int) -> str:
    return str(first)


@monitor.on_warning
async def shed(change: LevelChanged) -> None:
    assert_type(change.after, Level)


async def uses() -> None:
    assert_type(plain(1, second="x"), float)
    assert_type(await later(1), str)
    assert_type(monitor.check(), Reading)
    assert_type(monitor.level, Level)
    assert_type(monitor.statistics(), MonitorStatistics)
    assert_type(monitor.recommendations(), tuple[Recommendation, ...])
    assert_type(monitors(), tuple[MemoryMonitor, ...])
    async with monitor as started, monitor.admit("1 MiB") as admission, task_scope(admit=monitor):
        assert_type(started, MemoryMonitor)
        assert_type(admission, Admission)
