"""A monitor in forked children: alive on the first look, and startable once more."""

import asyncio
import ctypes
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable

import pytest

from memtools.errors import MonitorAlreadyStarted
from memtools.events import LevelChanged
from memtools.readings import Level

if not hasattr(os, "fork"):
    pytest.skip("there is no fork on Windows", allow_module_level=True)


def in_child(work: Callable[[], object], fork: Callable[[], int] = os.fork) -> object:
    """Return what `work` returns in a forked child, or raise what it raises."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork while threads run is what is tested
        child = fork()
    if child == 0:
        signal.alarm(30)  # a child that hangs must not hang the suite
        try:
            try:
                result = work()
            except BaseException as error:
                result = error
            os.write(write_end, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    result = pickle.loads(answer)
    if isinstance(result, BaseException):
        raise result
    return result


def c_fork() -> int:
    """Fork as C code does it, without the handlers of Python."""
    child: int = ctypes.PyDLL(None).fork()
    return child


FORKS = [os.fork, pytest.param(c_fork, marks=pytest.mark.skipif(sys.platform != "linux", reason="tried on Linux"))]


def loops() -> int:
    return sum(thread.name == "memtools-monitor" for thread in threading.enumerate())


@pytest.fixture
def started(make):
    """A monitor whose sampling loop runs in a thread of this process."""
    with make(sample_every=1) as monitor:
        yield monitor


class TestThreadOfTheParent:
    @pytest.mark.parametrize("fork", FORKS)
    def test_level_is_that_of_the_child_on_the_first_look(self, machine, started, fork) -> None:
        def look() -> tuple[Level, Level]:
            machine.used = 950 * 2**20
            return started.level, started.level

        assert in_child(look, fork) == (Level.CRITICAL, Level.CRITICAL)
        assert started.level is Level.NORMAL

    @pytest.mark.parametrize(
        "look",
        [
            lambda monitor: monitor.level,
            lambda monitor: monitor.statistics(),
            lambda monitor: monitor.report(),
            lambda monitor: monitor.check(),
            lambda monitor: monitor.record("job", 0.1),
            lambda monitor: monitor.admit(),
            lambda monitor: monitor.start(),
        ],
    )
    def test_every_look_starts_the_thread_again(self, started, look) -> None:
        def count() -> tuple[int, str]:
            look(started)
            return loops(), started.statistics().mode

        assert in_child(count) == (1, "thread")

    def test_no_thread_is_started_before_the_first_look(self, started) -> None:
        assert in_child(threading.active_count) == 1

    def test_child_of_a_child_is_alive_on_its_first_look(self, machine, started) -> None:
        def look() -> Level:
            machine.used = 950 * 2**20
            return started.level

        assert in_child(lambda: in_child(look)) is Level.CRITICAL

    def test_fork_in_a_thread_is_noticed_as_well(self, machine, started) -> None:
        found = []

        def look() -> tuple[Level, int]:
            machine.used = 950 * 2**20
            return started.level, loops()

        thread = threading.Thread(target=lambda: found.append(in_child(look)))
        thread.start()
        thread.join()

        assert found == [(Level.CRITICAL, 1)]

    def test_start_is_taken_once_in_the_child(self, started) -> None:
        def start_twice() -> int:
            started.start()
            with pytest.raises(MonitorAlreadyStarted):
                started.start()
            return loops()

        assert in_child(start_twice) == 1

    def test_task_may_replace_the_thread_in_the_child(self, started) -> None:
        async def enter() -> str:
            async with started:
                return started.statistics().mode

        def run() -> tuple[str, str]:
            assert started.level is Level.NORMAL  # the thread runs
            inside = asyncio.run(enter())
            return inside, started.statistics().mode

        assert in_child(run) == ("task", "none")

    def test_stop_in_the_child_leaves_the_parent_running(self, started) -> None:
        def stop() -> int:
            assert started.level is Level.NORMAL
            started.stop()
            return loops()

        assert in_child(stop) == 0
        assert started.statistics().mode == "thread"

    def test_thread_in_the_child_calls_the_callbacks(self, machine, started) -> None:
        called = threading.Event()
        started.on_critical(lambda change: called.set())

        def look() -> bool:
            machine.used = 950 * 2**20
            assert started.level is Level.CRITICAL
            return called.wait(20)

        assert in_child(look)


class TestLoopOfTheParent:
    def in_child_of_a_loop(self, monitor, work: Callable[[], object]) -> object:
        async def fork() -> object:
            async with monitor:
                await asyncio.sleep(0)
                return in_child(work)

        return asyncio.run(fork())

    def test_level_follows_memory_as_long_as_it_is_asked_for(self, machine, make) -> None:
        monitor = make()

        def look() -> list[Level]:
            levels = []
            for used_mib in (100, 950, 950, 100, 100):
                machine.used, machine.now = used_mib * 2**20, machine.now + 30.0
                levels.append(monitor.level)
            return levels

        levels = self.in_child_of_a_loop(monitor, look)

        assert levels == [Level.NORMAL, Level.CRITICAL, Level.CRITICAL, Level.NORMAL, Level.NORMAL]

    def test_it_can_be_started_in_a_thread_of_the_child(self, make) -> None:
        monitor = make()

        def start() -> tuple[str, int]:
            monitor.start()
            return monitor.statistics().mode, loops()

        assert self.in_child_of_a_loop(monitor, start) == ("thread", 1)

    def test_it_can_be_started_on_a_loop_of_the_child(self, make) -> None:
        monitor = make()

        async def enter() -> str:
            async with monitor:
                return monitor.statistics().mode

        def start() -> str:
            found = []
            # A thread of its own: the loop that was copied still counts as running in this one.
            thread = threading.Thread(target=lambda: found.append(asyncio.run(enter())))
            thread.start()
            thread.join()
            return found[0]

        assert self.in_child_of_a_loop(monitor, start) == "task"


def test_monitor_that_was_never_started_starts_no_thread(make) -> None:
    monitor = make()

    def look() -> int:
        monitor.check()
        assert monitor.level is Level.NORMAL
        return threading.active_count()

    assert in_child(look) == 1


def test_block_of_the_parent_is_not_counted_down_in_the_child(make) -> None:
    monitor = make()

    def leave_the_inherited_block() -> tuple[int, int]:
        with monitor.admit("5 MiB"):
            inherited.__exit__(None, None, None)
            admissions = monitor.statistics().admissions
            return admissions.active, admissions.reserved_bytes

    inherited = monitor.admit("2 MiB")
    with inherited:
        assert in_child(leave_the_inherited_block) == (1, 5 * 2**20)
        assert monitor.statistics().admissions.active == 1
    assert monitor.statistics().admissions.active == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # libraries have threads
def test_callback_that_forks_returns_in_both_processes(machine, make) -> None:
    monitor = make()
    children = []

    def fork(change: LevelChanged) -> None:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child:
            os.close(write_end)
            children.append((child, read_end))
        else:
            signal.alarm(30)
            children.append((0, write_end))

    monitor.on_critical(fork)
    try:
        machine.raise_to(monitor, 950)
        if children[0][0] == 0:
            os.write(children[0][1], monitor.level.name.encode())
    finally:
        if children and children[0][0] == 0:
            os._exit(0)
    child, read_end = children[0]
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)

    assert answer == b"CRITICAL"
    assert monitor.statistics().callback_failures == 0


def test_changes_that_the_parent_has_yet_to_report_are_its_own(machine, make, events) -> None:
    monitor = make()
    monitor._engine._policy._acting.acquire()  # another thread is acting: changes wait
    machine.raise_to(monitor, 950)

    def reported() -> int:
        events.clear()
        machine.set(monitor, 950)
        return sum(isinstance(event, LevelChanged) for event in events)

    assert in_child(reported) == 0
    monitor._engine._policy._acting.release()
