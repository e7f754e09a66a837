"""Tasks of every kind in a worker of Celery that `watch_worker` watches.

Processes of a pool are in `tests/integration/test_services.py`.
"""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.contrib.testing.worker import start_worker

from memtools import MemoryMonitor
from memtools.errors import BudgetExceeded
from memtools.integrations.celery import watch_worker
from memtools.ledger import AccountStatistics, active_owner, choose_meter, forget_accounts, statistics

MIB = 2**20
TIMEOUT_S = 30

needs_native = pytest.mark.skipif(choose_meter().name != "native", reason="only the native meter counts to the byte")
# The result of a task, of the in-memory backend, and the broker's channel are those of Celery.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True)
def logging_left_alone() -> Iterator[None]:
    """Have a worker leave the handlers of the root logger, which are pytest's, as they are."""

    def set_nothing_up(**_: object) -> None:
        pass

    signals.setup_logging.connect(set_nothing_up, weak=False)
    yield
    signals.setup_logging.disconnect(set_nothing_up)


@pytest.fixture(autouse=True)
def fresh_accounts() -> Iterator[None]:
    forget_accounts()
    yield
    forget_accounts()


class Tasks:
    """An application with a task of each kind, and what its tasks keep."""

    def __init__(self) -> None:
        self.app = app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.broker_transport_options = {"polling_interval": 0.01}
        kept: list[bytes] = []
        attempts: list[int] = []

        def keep(size: int) -> str:
            kept.append(b"x" * size)
            owner = active_owner()
            return owner.name if owner else "-"

        # Not shared, or each application of this process had them.
        @app.task(name="leak", shared=False)
        def leak(size: int) -> str:
            return keep(size)

        @app.task(name="bound", bind=True, shared=False)
        def bound(task: Any, size: int) -> list[str]:
            return [task.name, keep(size)]

        @app.task(name="flaky", autoretry_for=(ValueError,), retry_kwargs={"countdown": 0}, shared=False)
        def flaky() -> int:
            attempts.append(1)
            if len(attempts) < 3:
                raise ValueError("not yet")
            return len(attempts)

        class OfClass(Task):  # type: ignore[misc]
            name = "of-class"

            def run(self, size: int) -> str:
                return keep(size)

        self.leak, self.bound, self.flaky, self.of_class = leak, bound, flaky, app.register_task(OfClass())

    def accounts(self) -> dict[str, AccountStatistics]:
        return {account.name: account for account in statistics().accounts if account.kind == "scope"}


def _worker(tasks: Tasks, pool: str) -> Any:
    return start_worker(tasks.app, pool=pool, concurrency=2, perform_ping_check=False, loglevel="ERROR")


def _get(*sent: Any) -> list[Any]:
    return [result.get(timeout=TIMEOUT_S) for result in sent]


def test_tasks_of_every_kind_are_charged_by_name() -> None:
    tasks = Tasks()
    watch_worker(tasks.app)

    with _worker(tasks, "solo"):
        sent = [task.delay(10) for task in (tasks.leak, tasks.bound, tasks.of_class)]
        results = _get(*sent, tasks.flaky.delay())

    assert results == ["leak", ["bound", "bound"], "of-class", 3]
    assert {name: account.started for name, account in tasks.accounts().items()} == {
        "leak": 1,
        "bound": 1,
        "of-class": 1,
        "flaky": 3,
    }


@needs_native
@pytest.mark.leaves("thread", reason="a worker of Celery's own tests ends as by SIGQUIT, and leaves its pool's threads")
def test_task_in_a_thread_is_charged_to_the_byte_and_bounded() -> None:
    tasks = Tasks()
    watch_worker(tasks.app, budget="8 MiB")

    with _worker(tasks, "threads"):
        _get(*[tasks.leak.delay(MIB) for _ in range(20)])
        kept = tasks.accounts()["leak"].retained_bytes
        with pytest.raises(BudgetExceeded):
            _get(tasks.bound.delay(20 * MIB))

    assert kept == pytest.approx(20 * MIB, rel=0.02)


def test_worker_without_processes_recycles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tasks, watched = Tasks(), Tasks()
    monitor = MemoryMonitor(warning="2 GiB", critical="4 GiB", name="tasks")

    @tasks.app.task(name="mode", shared=False)
    def mode() -> str:
        return monitor.statistics().mode

    watch_worker(tasks.app, monitor=monitor, growth="20 MiB")
    watch_worker(watched.app, warn="1 MiB")  # an application of which there is no worker

    with _worker(tasks, "solo"):
        (seen,) = _get(mode.delay())
    monitor.stop()  # the worker ends as by SIGQUIT, where Celery calls nothing

    assert seen == "thread"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "growth= replaces processes of the prefork pool; this pool has none, and nothing is replaced"
    ]
    assert watched.leak(10) == "-"  # as in a program that sends tasks
