"""`thread_pool_scope`: owners, admission, default executor, abandoned tasks."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import time
import weakref

import pytest

from memtools import ConfigError, memory_scope
from memtools.events import TaskAbandoned, subscribe
from memtools.ledger import active_owner
from memtools.monitor import MemoryMonitor
from memtools.pools import thread_pool_scope


def allocate(size):
    return bytearray(size)


@pytest.mark.parametrize("meter", ["native", "tracemalloc"])
def test_tasks_are_charged_to_their_submitters(meter):
    with thread_pool_scope(1) as pool:
        pool.submit(abs, 1).result()  # the thread was started for no owner
        with memory_scope("large", meter=meter) as large:
            kept = [pool.submit(allocate, 5_000_000).result()]
        with memory_scope("small", meter=meter) as small:
            kept.append(pool.submit(allocate, 1_000_000).result())

    assert 5_000_000 <= large.usage.retained_bytes < 5_200_000
    assert 1_000_000 <= small.usage.retained_bytes < 1_200_000
    assert len(kept) == 2


def test_thread_started_in_a_scope_is_charged_no_longer():
    with memory_scope("first"), thread_pool_scope(1) as pool:
        pool.submit(abs, 1).result()
        owner = contextvars.Context().run(lambda: pool.submit(active_owner).result())
        assert owner is None
        assert pool.submit(active_owner).result().name == "first"


def test_context_of_the_submitter_is_copied():
    variable = contextvars.ContextVar("variable", default=0)

    def read_and_set():
        value = variable.get()
        variable.set(9)
        return value

    with thread_pool_scope(1) as pool:
        variable.set(1)
        first = pool.submit(read_and_set)
        variable.set(2)
        assert (first.result(), pool.submit(read_and_set).result(), variable.get()) == (1, 2, 2)


async def test_pool_serves_as_default_executor():
    pool = thread_pool_scope(2, name="default")
    loop = asyncio.get_running_loop()
    loop.set_default_executor(pool)

    assert "default" in await asyncio.to_thread(lambda: threading.current_thread().name)

    await loop.shutdown_default_executor()
    assert pool.statistics().state == "ended"


async def test_task_that_does_not_end_is_abandoned_and_named(caplog):
    release = threading.Event()
    events = []

    def hang():
        release.wait(20)

    with caplog.at_level(logging.WARNING), subscribe(events.append), pytest.raises(KeyError):  # noqa: PT012
        async with thread_pool_scope(1, grace=0.05, name="stuck") as pool:
            pool.submit(hang)
            raise KeyError
    assert [(event.scope, event.grace_s) for event in events if isinstance(event, TaskAbandoned)] == [("stuck", 0.05)]
    assert "stuck abandons 1 of its tasks" in caplog.text
    assert "hang" in caplog.text
    assert (pool.statistics().abandoned, pool.statistics().state) == (1, "shutting down")

    release.set()
    pool.shutdown()


def test_block_waits_without_end_for_what_runs_in_time():
    done = []

    with thread_pool_scope(1, grace=0.01) as pool:
        pool.submit(lambda: (time.sleep(0.1), done.append(1)))

    assert done == [1]


class OneAtOnce:
    """An admission that counts."""

    def __init__(self):
        self.lock = threading.Lock()
        self.active = self.most = self.admitted = 0

    @contextlib.contextmanager
    def admit(self):
        with self.lock:
            self.active += 1
            self.most = max(self.most, self.active)
            self.admitted += 1
            yield
            self.active -= 1


def test_each_task_waits_for_its_admission():
    admission = OneAtOnce()

    with thread_pool_scope(4, admit=admission) as pool:
        list(pool.map(time.sleep, [0.005] * 8))

    assert (admission.most, admission.admitted) == (1, 8)


def test_monitor_admits_tasks():
    monitor = MemoryMonitor("99%", "100%")

    with thread_pool_scope(2, admit=monitor) as pool:
        assert list(pool.map(abs, range(10))) == list(range(10))

    assert monitor.statistics().admissions.admitted == 10


def test_task_that_waits_for_admission_is_not_run_after_the_end():
    admission = OneAtOnce()
    started = []
    admission.lock.acquire()
    timer = threading.Timer(0.1, admission.lock.release)

    with pytest.raises(KeyError), thread_pool_scope(1, admit=admission) as pool:  # noqa: PT012
        future = pool.submit(started.append, 1)
        timer.start()
        raise KeyError

    timer.join()
    assert started == []
    assert "ended early" in str(future.exception())


@pytest.mark.parametrize("admit", [3, MemoryMonitor, object()])
def test_admission_without_admit_is_refused(admit):
    with pytest.raises(ConfigError, match="admit="):
        thread_pool_scope(1, admit=admit)


def test_nothing_of_an_ended_task_is_kept():
    class Big:
        pass

    def work(big):
        return Big()

    def fail(big):
        raise ValueError("too late")

    gc.collect()
    gc.disable()
    try:
        with thread_pool_scope(1) as pool:
            arguments = [Big(), Big()]
            references = [weakref.ref(argument) for argument in arguments]
            references.append(weakref.ref(pool.submit(work, arguments[0]).result()))
            with pytest.raises(ValueError, match="late"):
                pool.submit(fail, arguments[1]).result()
            del arguments
            pool.submit(abs, 1).result()
            assert [reference() for reference in references[:1] + references[2:]] == [None, None]
    finally:
        gc.enable()
