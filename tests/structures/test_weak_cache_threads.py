"""`WeakCache` with many threads, with finalisers, after a fork and at interpreter shutdown."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memtools.errors import RecursiveFactory
from memtools.structures import WeakCache

TIMEOUT_S = 30.0
PROGRAM = Path(__file__).parent / "programs" / "cache_at_shutdown.py"


class Value:
    """Something that can be weakly referenced."""


class Node(Value):
    """A value in a reference cycle."""

    def __init__(self):
        self.me = self


def run_all(*works):
    """Run each function in a thread of its own; return when all have ended in time and without an error."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result(timeout=TIMEOUT_S)


def test_a_thousand_missing_threads_share_one_call():
    cache = WeakCache()
    runs = []
    go = threading.Event()
    missed = threading.Semaphore(0)

    def factory():
        runs.append(1)
        go.wait(TIMEOUT_S)
        return Value()

    def ask():
        missed.release()
        got.append(cache.get_or_create("key", factory))

    got = []
    threads = [threading.Thread(target=ask) for _ in range(1000)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert missed.acquire(timeout=TIMEOUT_S)
    go.set()
    for thread in threads:
        thread.join(TIMEOUT_S)

    assert len(runs) == 1
    assert len(got) == 1000
    assert len(set(map(id, got))) == 1
    assert cache.statistics().in_progress == 0


def wait_for_waiter(cache, key):
    """Return when another thread waits for the call of `key`."""
    deadline = threading.Event()
    for _ in range(3000):
        call = cache._calls.in_threads.get(key)
        if call is not None and call.has_waiters:
            return
        deadline.wait(0.01)
    raise AssertionError("no thread waits")


def test_failure_is_raised_in_all_waiters_and_not_stored():
    cache = WeakCache()
    error = ValueError("no")
    seen = []

    def failing():
        wait_for_waiter(cache, "key")
        raise error

    def ask():
        try:
            cache.get_or_create("key", failing)
        except ValueError as caught:
            seen.append(caught)

    run_all(ask, ask)
    later = cache.get_or_create("key", lambda: "fine")

    assert seen == [error, error]
    assert later == "fine"


def test_interrupted_call_is_repeated_by_the_next_thread():
    cache = WeakCache()
    interrupted = []

    def interrupt():
        wait_for_waiter(cache, "key")
        raise KeyboardInterrupt

    def first():
        try:
            cache.get_or_create("key", interrupt)
        except KeyboardInterrupt:
            interrupted.append(1)

    def second():
        while not len(cache._calls):
            pass
        got.append(cache.get_or_create("key", lambda: "second"))

    got = []
    run_all(first, second)

    assert interrupted == [1]
    assert got == ["second"]


def test_factory_that_asks_for_its_own_key_raises():
    cache = WeakCache()

    def factory():
        return cache.get_or_create("key", factory)

    with pytest.raises(RecursiveFactory, match="'key' waits for that key itself"):
        cache.get_or_create("key", factory)

    assert cache.statistics().in_progress == 0
    assert cache.get_or_create("key", lambda: 1) == 1


def test_factories_that_wait_for_each_other_raise():
    cache, other = WeakCache(), WeakCache()
    both = threading.Barrier(2)
    failed = []

    def one():
        both.wait(TIMEOUT_S)
        return other.get_or_create("b", lambda: "b alone")

    def two():
        both.wait(TIMEOUT_S)
        return cache.get_or_create("a", lambda: "a alone")

    def ask(which, key, factory):
        try:
            which.get_or_create(key, factory)
        except RecursiveFactory as error:
            failed.append(error)

    run_all(lambda: ask(cache, "a", one), lambda: ask(other, "b", two))

    assert failed


def test_nested_factory_for_another_key_works():
    cache = WeakCache()

    made = cache.get_or_create("a", lambda: ("a", cache.get_or_create("b", lambda: "b")))

    assert made == ("a", "b")


def test_value_set_meanwhile_is_returned_to_all():
    cache = WeakCache()
    explicit = Value()

    def factory():
        cache["key"] = explicit
        return Value()

    assert cache.get_or_create("key", factory) is explicit


@pytest.mark.parametrize("remove", [lambda c: c.pop("key", None), lambda c: c.clear()])
def test_value_of_a_removed_key_is_not_stored(remove):
    cache = WeakCache()

    def factory():
        remove(cache)
        return "made of what is no longer true"

    made = cache.get_or_create("key", factory)

    assert made == "made of what is no longer true"
    assert "key" not in cache
    assert cache.statistics().in_progress == 0


def test_value_that_cannot_be_stored_raises():
    cache = WeakCache(strong=0)

    with pytest.raises(TypeError, match="cannot be weakly referenced"):
        cache.get_or_create("key", lambda: 1)

    assert cache.statistics().in_progress == 0


def test_failed_call_keeps_no_frame_alive():
    cache = WeakCache()
    seen = []

    def failing():
        local = Value()
        seen.append(weakref.ref(local))
        raise ValueError

    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            cache.get_or_create("key", failing)
        died = seen[0]() is None
    finally:
        gc.enable()

    assert died


def test_shared_failure_keeps_no_frame_alive():
    cache = WeakCache()
    seen = []

    def failing():
        local = Value()
        seen.append(weakref.ref(local))
        if len(seen) == 1:  # a thread that misses after the first call has failed starts its own, without waiters
            wait_for_waiter(cache, "key")
        raise ValueError

    def ask():
        with contextlib.suppress(ValueError):
            cache.get_or_create("key", failing)

    gc.disable()
    try:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        died = [reference() is None for reference in seen]
    finally:
        gc.enable()

    assert died == [True] * len(seen)


def test_many_finalisers_cause_no_deadlock():
    cache = WeakCache(strong=8, on_evict=lambda key, value: cache.get(key))

    class Busy(Node):
        def __del__(self):
            # In the middle of any line of the cache: a collection may start at any allocation.
            cache[id(self) % 50] = Node()
            cache.get(id(self) % 50)
            len(cache)

    def put():
        for number in range(2000):
            cache[number % 50] = Busy()
            cache.pop(number % 7, None)
            cache.get_or_create(number % 13, Node)

    thresholds = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        run_all(put, put)
    finally:
        gc.set_threshold(*thresholds)
    Busy.__del__ = lambda self: None
    gc.collect()

    figures = cache.statistics()
    assert figures.strong <= 8
    assert figures.strong + figures.weak == len(cache) == len(list(cache)) <= 8


def test_weakref_callback_runs_no_python_code():
    cache = WeakCache(strong=0)
    value = Value()
    cache["key"] = value

    callback = cache._index["key"].__callback__

    assert callback.__self__ is cache._dead
    assert callback.__qualname__ == "deque.append"


def test_hits_of_all_threads_are_counted():
    cache = WeakCache()
    cache["key"] = Value()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def read():
        for _ in range(20_000):
            cache.get("key")

    try:
        run_all(read, read, read, read)
    finally:
        sys.setswitchinterval(interval)

    assert cache.statistics().hits == 80_000


def test_concurrent_use_leaves_consistent_statistics():
    cache = WeakCache(strong=16, max_bytes=4000, sizeof=lambda value: 100, ttl=60)
    kept = [Value() for _ in range(50)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(seed):
        for number in range(3000):
            key = (number * seed) % 50
            cache[key] = kept[key]
            cache.get((key + 1) % 50)
            if number % 3 == 0:
                cache.pop((key + 2) % 50, None)
            if number % 100 == 0:
                list(cache.items())
            if number % 500 == 0:
                cache.clear()

    try:
        run_all(*(lambda seed=seed: work(seed) for seed in (1, 3, 7, 11)))
    finally:
        sys.setswitchinterval(interval)
    figures = cache.statistics()

    assert figures.strong <= 16
    assert figures.strong_bytes == 100 * figures.strong
    assert figures.strong + figures.weak == len(cache)
    assert all(value is kept[key] for key, value in cache.items())


def test_removed_entry_is_not_found_again():
    cache = WeakCache(strong=4)
    values = [Value() for _ in range(20)]
    stop = threading.Event()

    def read():
        while not stop.is_set():
            for key in range(20):
                cache.get(key)

    def remove():
        try:
            for _ in range(300):
                for key in range(20):
                    cache[key] = values[key]
                for key in range(20):
                    del cache[key]
                assert all(key not in cache for key in range(20))
                assert not any(cache.get(key) for key in range(20))
        finally:
            stop.set()

    run_all(read, read, remove)

    assert len(cache) == 0
    assert cache.statistics().strong == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_another_thread_holds_the_lock():
    cache = WeakCache()
    cache["key"] = 1
    holds, leave = threading.Event(), threading.Event()

    def hold():
        with cache._lock:
            holds.set()
            leave.wait(TIMEOUT_S)

    def make():
        return cache.get_or_create("made", lambda: leave.wait(TIMEOUT_S))

    threads = [threading.Thread(target=make), threading.Thread(target=hold)]
    for thread in threads:
        thread.start()
        while thread is threads[0] and not len(cache._calls):
            pass
    assert holds.wait(TIMEOUT_S)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the subject
        child = os.fork()
    if child == 0:
        made = cache.get_or_create("made", lambda: "in the child")
        os._exit(0 if made == "in the child" and len(cache) == 1 else 1)
    _, status = os.waitpid(child, 0)
    leave.set()
    for thread in threads:
        thread.join(TIMEOUT_S)

    assert os.waitstatus_to_exitcode(status) == 0
    assert cache["key"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_has_the_entries():
    cache = WeakCache()
    cache["key"] = 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if cache.get("key") == 1 else 1)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0


def test_interpreter_shutdown_is_silent():
    run = subprocess.run([sys.executable, "-X", "dev", str(PROGRAM)], capture_output=True, text=True, timeout=60)

    assert (run.returncode, run.stderr) == (0, "")
