"""A bounded dict in threads, finalisers, hooks and forks."""

import gc
import logging
import multiprocessing
import sys
import threading
import time
from typing import Any

import pytest

from memtools import BoundedDict, Level
from memtools.cleanup import registered

VARIANTS: dict[str, dict[str, Any]] = {
    "oldest": {},
    "least recent": {"drop": "least_recent"},
    "ttl": {"ttl": 60},
    "bytes": {"max_bytes": "1 MiB"},
    "all": {"max_bytes": "1 MiB", "ttl": 60, "drop": "least_recent"},
}
_THREADS = 4
_TURNS = 2_000


@pytest.fixture(params=VARIANTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


@pytest.fixture
def often_switched() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _run(*functions: Any) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(function: Any, number: int) -> None:
        try:
            function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(each, number)) for number, each in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.usefixtures("often_switched")
class TestThreads:
    def test_each_entry_is_kept_or_reported_once(self, options: dict[str, Any]) -> None:
        gone: list[tuple[int, int]] = []
        kept: BoundedDict[int, int] = BoundedDict(maxlen=50, on_evict=lambda *entry: gone.append(entry), **options)

        def write(number: int) -> None:
            for turn in range(_TURNS):
                kept[number * _TURNS + turn] = turn

        errors = _run(*[write] * _THREADS)

        assert errors == []
        assert len(kept) == 50
        assert sorted([*kept, *(key for key, _ in gone)]) == list(range(_THREADS * _TURNS))
        assert kept.statistics().evicted == _THREADS * _TURNS - 50

    def test_bound_holds_after_mixed_calls(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[int, int] = BoundedDict(maxlen=20, **options)

        def mix(number: int) -> None:
            for turn in range(_TURNS):
                key = (turn * (number + 3)) % 60
                kept[key] = turn
                kept.get(key)
                kept.pop((key + 1) % 60, None)
                kept.setdefault(key + 5, turn)
                if turn % 50 == 0:
                    kept.update({key + step: turn for step in range(30)})
                if turn % 333 == 0:
                    kept.clear()

        errors = _run(*[mix] * _THREADS)
        kept[-1] = -1
        kept.check()

        assert errors == []
        assert len(kept) <= 20
        if options:
            assert set(kept._order) == set(kept)
            assert kept._size_bytes == sum(kept._order.values())


class TestFinalisers:
    def test_value_that_sets_an_entry_when_it_ends(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[int, Any] = BoundedDict(maxlen=5, **options)

        class Value:
            def __init__(self, number: int) -> None:
                self.number = number

            def __del__(self) -> None:
                if self.number < 500:
                    kept[self.number + 1000] = None

        for number in range(200):
            kept[number % 7] = Value(number)
            if number % 50 == 0:
                gc.collect()
        kept[99] = None

        assert len(kept) <= 5
        kept.clear()

    def test_finaliser_runs_outside_the_lock(self) -> None:
        outer = threading.Lock()
        kept: BoundedDict[int, Any] = BoundedDict(maxlen=1, drop="least_recent", ttl=60)

        class Value:
            def __del__(self) -> None:
                # Another thread holds this lock while it uses the dict.
                assert outer.acquire(timeout=5)
                outer.release()

        def drop(_: int) -> None:
            for _turn in range(300):
                kept[2] = Value()
                kept.clear()

        def use(_: int) -> None:
            for _turn in range(300):
                with outer:
                    kept.pop(3, None)

        assert _run(use, drop, use) == []


class TestHook:
    def test_failing_hook_is_logged_and_counted(self, options: dict[str, Any], caplog: Any) -> None:
        def fail(key: int, value: int) -> None:
            raise LookupError(key)

        kept: BoundedDict[int, int] = BoundedDict(maxlen=1, on_evict=fail, **options)
        with caplog.at_level(logging.ERROR, "memtools.structures"):
            for number in range(4):
                kept[number] = number

        assert dict(kept) == {3: 3}
        assert kept.statistics().hook_failures == 3
        assert len(caplog.records) == 1

    def test_hook_that_puts_entries_back_is_stopped(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[int, int] = BoundedDict(
            maxlen=2, on_evict=lambda key, value: kept.update({key: 0}), **options
        )

        kept.update({1: 1, 2: 2, 3: 3})

        assert len(kept) <= 2
        assert kept.statistics().hook_failures == 1

    def test_interrupt_in_hook_passes(self, options: dict[str, Any]) -> None:
        def interrupt(key: int, value: int) -> None:
            raise KeyboardInterrupt

        kept: BoundedDict[int, int] = BoundedDict({1: 1}, maxlen=1, on_evict=interrupt, **options)
        with pytest.raises(KeyboardInterrupt):
            kept[2] = 2

        assert dict(kept) == {2: 2}


class TestShrink:
    @pytest.mark.parametrize(("level", "left"), [(Level.WARNING, 500), (Level.CRITICAL, 50), (Level.NORMAL, 1_000)])
    def test_first_to_be_dropped_go(self, options: dict[str, Any], level: Level, left: int) -> None:
        gone: list[int] = []
        kept: BoundedDict[int, int] = BoundedDict(
            {number: number for number in range(1_000)}, 1_000, on_evict=lambda key, value: gone.append(key), **options
        )

        freed_bytes = kept.shrink(level, time.monotonic() + 60)

        assert list(kept) == list(range(1_000 - left, 1_000))
        assert gone == list(range(1_000 - left))
        assert (freed_bytes > 0) == (left < 1_000)
        assert not kept.is_shrinking

    def test_deadline_ends_it_and_the_next_call_goes_on(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[int, int] = BoundedDict(maxlen=100_000, **options)
        kept.update((number, number) for number in range(100_000) if "max_bytes" not in options or number < 5_000)
        before = len(kept)

        kept.shrink(Level.CRITICAL, time.monotonic() + 0.0005)
        assert kept.is_shrinking
        assert 50 < len(kept) <= before

        while kept.is_shrinking:
            kept.shrink(Level.CRITICAL, time.monotonic() + 0.002)
        assert len(kept) == 50

    def test_dicts_are_registered_weakly(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[int, int] = BoundedDict(maxlen=5, **options)
        aside: BoundedDict[int, int] = BoundedDict(maxlen=5, shrinkable=False, **options)

        assert any(each is kept for each in registered())
        assert not any(each is aside for each in registered())

        key = id(kept)
        del kept
        assert not any(id(each) == key for each in registered())


def _child(pipe: Any, kept: Any) -> None:
    kept[7] = 7
    pipe.send(sorted(kept))
    pipe.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_child_of_a_fork_that_came_in_mid_change_goes_on(options: dict[str, Any]) -> None:
    from memtools.structures import _dict_bounds

    kept: BoundedDict[int, int] = BoundedDict({1: 1, 2: 2}, maxlen=2, on_evict=lambda key, value: None, **options)
    release, held = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        with _dict_bounds.lock:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold, args=(0,))
    thread.start()
    held.wait(30)
    context: Any = multiprocessing.get_context("fork")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=_child, args=(child_end, kept))
    process.start()
    try:
        assert parent_end.poll(30)
        assert parent_end.recv() == [2, 7]
    finally:
        release.set()
        thread.join()
        process.join(30)
        parent_end.close()
        child_end.close()
