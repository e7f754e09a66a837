"""The tracemalloc meter on builds without a GIL: there for real, elsewhere with what it asks of the build set."""

import gc
import logging
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from memtools.errors import BudgetExceeded
from memtools.ledger import _threads, native_reason
from memtools.ledger.meters import _choose, _tracemalloc
from memtools.scopes import memory_scope

THREADS = 4


@pytest.fixture(autouse=True)
def no_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tracemalloc, "_FREE_THREADED", True)
    monkeypatch.setattr(_tracemalloc, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(_threads, "_CLOCKS_TELL_ALL", False)
    monkeypatch.setattr(_threads, "IDLE_THREADS", threading.active_count() - 1)  # of pytest's plugins
    monkeypatch.setitem(_choose._meters, "tracemalloc", _tracemalloc.TracemallocMeter())


@contextmanager
def idle_thread() -> Iterator[None]:
    done = threading.Event()
    with _thread_of(done.wait, done):
        yield


@contextmanager
def busy_thread() -> Iterator[None]:
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            sum(range(1_000))

    with _thread_of(run, done):
        yield


@contextmanager
def _thread_of(run: Callable[[], object], done: threading.Event) -> Iterator[None]:
    before = len(sys._current_frames())
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        while len(sys._current_frames()) > before:  # a thread that has ended is removed a moment later
            time.sleep(0.001)


def test_session_is_not_started_while_others_run(caplog: pytest.LogCaptureFixture) -> None:
    with busy_thread(), caplog.at_level(logging.WARNING, "memtools.ledger"):
        with memory_scope("first", meter="tracemalloc", budget="1 MiB") as first:
            kept = bytearray(4_000_000)
            assert not tracemalloc.is_tracing()
        with memory_scope("second", meter="tracemalloc") as second:
            pass

    assert len(kept) == 4_000_000
    assert (first.usage.exact, second.usage.exact) == (False, False)
    warned = [record for record in caplog.records if record.name == "memtools.ledger"]
    assert ["start Python with -X tracemalloc" in record.getMessage() for record in warned] == [True]


def test_session_starts_once_there_is_one_thread() -> None:
    with busy_thread(), memory_scope("beside another", meter="tracemalloc"):
        pass
    with memory_scope("alone", meter="tracemalloc") as alone:
        kept = bytearray(4_000_000)

    assert alone.usage.retained_bytes == pytest.approx(len(kept), rel=0.01)


def test_session_is_started_beside_idle_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "others_are_idle", lambda seconds: True)
    with idle_thread(), memory_scope("beside a thread of a pool", meter="tracemalloc") as beside:
        kept = bytearray(4_000_000)
    with memory_scope("alone", meter="tracemalloc"):
        pass

    assert beside.usage.retained_bytes == pytest.approx(len(kept), rel=0.01)
    assert not beside.usage.exact
    assert not tracemalloc.is_tracing()


def test_waiting_thread_is_idle_and_a_running_one_is_not() -> None:
    with idle_thread():
        found = {_threads.others_are_idle(0.02) for _ in range(50)}  # not at once: it has just been started
    with busy_thread():
        while_busy = _threads.others_are_idle(0.2)

    assert True in found
    assert not while_busy


def test_session_is_not_stopped_beside_other_threads() -> None:
    scope = memory_scope("alone", meter="tracemalloc")
    scope.__enter__()
    with idle_thread():
        scope.__exit__(None, None, None)
        assert tracemalloc.is_tracing()
        with memory_scope("in the same session", meter="tracemalloc") as later:
            kept = bytearray(4_000_000)
    assert tracemalloc.is_tracing()

    with memory_scope("last", meter="tracemalloc"):
        pass

    assert later.usage.retained_bytes == pytest.approx(len(kept), rel=0.01)
    assert not tracemalloc.is_tracing()


def test_session_of_another_tool_in_its_place_is_left_running() -> None:
    scope = memory_scope("alone", meter="tracemalloc")
    scope.__enter__()
    with idle_thread():
        scope.__exit__(None, None, None)
        tracemalloc.stop()
        tracemalloc.start()

    with memory_scope("last", meter="tracemalloc"):
        pass

    assert tracemalloc.is_tracing()
    tracemalloc.stop()


def test_stop_by_another_tool_beside_threads_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with memory_scope("stopped", meter="tracemalloc") as stopped, idle_thread():
        tracemalloc.stop()
        with memory_scope("child", meter="tracemalloc") as child:
            pass

    assert not stopped.usage.exact
    assert not child.usage.exact
    assert not tracemalloc.is_tracing()


def test_idle_thread_makes_figures_doubtful() -> None:
    with memory_scope("both", meter="tracemalloc"), idle_thread(), memory_scope("child", meter="tracemalloc") as beside:
        pass
    with memory_scope("alone", meter="tracemalloc") as alone:
        pass

    assert not beside.usage.exact
    assert alone.usage.exact


def test_collection_that_gets_no_lock_makes_figures_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tracemalloc, "_COLLECTION_WAIT_S", 0.001)
    monkeypatch.setattr(_threads, "ran_since", lambda then: False)
    meter = _choose.choose_meter("tracemalloc")
    assert isinstance(meter, _tracemalloc.TracemallocMeter)
    lock = meter._lock
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    with memory_scope("collected", meter="tracemalloc") as collected:
        kept = bytearray(4_000_000)
        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        gc.collect()
        done.set()
        holder.join()

    assert len(kept) == 4_000_000
    assert not collected.usage.exact


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_budgets_stop_no_thread_for_what_another_one_made() -> None:
    stopped: list[str] = []
    done = threading.Event()

    def allocate() -> None:
        while not done.is_set():
            made = [bytearray(6 << 20), [0] * 900_000]
            del made

    def open_scopes(number: int) -> None:
        for n in range(40):
            try:
                with memory_scope(f"thread {number}, scope {n}", meter="tracemalloc", budget="5 MiB"):
                    sum(range(2_000))
            except BudgetExceeded as error:
                stopped.append(str(error))

    with memory_scope("all", meter="tracemalloc"):
        wasteful = threading.Thread(target=allocate)
        wasteful.start()
        threads = [threading.Thread(target=open_scopes, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        wasteful.join()

    assert stopped == []


def test_figures_of_threads_at_once_are_possible_and_doubtful() -> None:
    kept: list[list[bytearray]] = [[] for _ in range(THREADS)]
    usages: list[memory_scope] = []

    def keep(number: int) -> None:
        for _ in range(50):
            with memory_scope(f"thread {number}", meter="tracemalloc") as scope:
                kept[number].append(bytearray(100_000))
                cycle: list[object] = []
                cycle.append(cycle)
            usages.append(scope)

    with memory_scope("all", meter="tracemalloc") as everything:
        threads = [threading.Thread(target=keep, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    total = sum(len(part) for thread in kept for part in thread)
    assert len(usages) == THREADS * 50
    assert not any(scope.usage.exact for scope in usages)
    assert not everything.usage.exact
    assert all(abs(scope.usage.retained_bytes) < 2 * total for scope in usages)
    assert sum(scope.usage.retained_bytes for scope in usages) + everything.usage.retained_bytes < 2 * total


INHERITS = """
import threading
from memtools.scopes import memory_scope

made = {}

def work():
    with memory_scope("in thread", meter="METER") as made["scope"]:
        made["kept"] = bytearray(1_000_000)

with memory_scope("starter", meter="METER") as starter:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
# Less than the block: what the thread has freed of its own beginning is taken off.
print(starter.usage.retained_bytes > 900_000, made["scope"].usage.retained_bytes > 900_000)
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="threads inherit contexts since 3.14")
@pytest.mark.parametrize("meter", ["tracemalloc", *([] if native_reason() else ["native"])])
@pytest.mark.parametrize("inherits", [True, False])
def test_scope_covers_threads_that_inherit_its_context(meter: str, inherits: bool) -> None:
    option = f"thread_inherit_context={int(inherits)}"
    command = [sys.executable, "-X", option, "-X", "tracemalloc", "-c", INHERITS.replace("METER", meter)]

    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == f"{inherits} True\n"
