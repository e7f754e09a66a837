"""Types of the monitor; checked by mypy and pyright, never run."""

from pathlib import Path
from typing import assert_type

from starlette.applications import Starlette
from starlette.routing import Mount

from memtools import Level, MemoryMonitor, Reading
from memtools.events import LevelChanged
from memtools.integrations.health import HealthApp, HealthResponse, health_response
from memtools.monitor import Admission, Health, MonitorStatistics, Recommendation, monitors
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
    assert_type(monitor.health(), Health)
    assert_type(monitor.try_admit(), bool)
    monitor.exit_when_exhausted(grace=10, code=75, report_file=Path("/tmp/report"))
    Starlette(routes=[Mount("/health", HealthApp(monitor))])
    assert_type(health_response(monitor, "ready"), HealthResponse)
    async with monitor as started, monitor.admit("1 MiB") as admission, task_scope(admit=monitor):
        assert_type(started, MemoryMonitor)
        assert_type(admission, Admission)
