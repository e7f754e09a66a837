"""Leak tests of functions: each leaking version is found and named, each fixed version is clean."""

import asyncio
import contextlib
import ctypes
import functools
import gc
import itertools
import logging
import os
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from memtools.analysis import Verdict
from memtools.errors import ConfigError, LeakError, LeakWarning
from memtools.ledger import native_reason
from memtools.readings._counters import descriptors, malloc_bytes
from memtools.testing import StressTest, assert_no_leaks, find_leaks

METERS = ["tracemalloc"] if native_reason() else ["native", pytest.param("tracemalloc", marks=pytest.mark.once)]

kept: list[Any] = []
by_number: dict[int, bytes] = {}
state = SimpleNamespace(calls=0, last=b"")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    _forget()
    yield
    _forget()
    gc.collect()


def _forget() -> None:
    for one in kept:
        if isinstance(one, int):
            os.close(one)
        if isinstance(one, threading.Event):
            one.set()
        if isinstance(one, threading.Thread):
            one.join()
    kept.clear()
    by_number.clear()
    state.calls = 0
    _cached.cache_clear()
    _never_full.cache_clear()


@functools.lru_cache(maxsize=5_000)
def _cached(number: int) -> list[int]:
    return [number]


@functools.lru_cache(maxsize=10**9)
def _never_full(number: int) -> list[int]:
    return [number]


def keeps_200_bytes() -> None:
    kept.append(bytes(200))


def keeps_1_kib() -> None:
    kept.append(bytes(1024))


def keeps_64_kib() -> None:
    kept.append(bytes(64 * 1024))


def keeps_1_kib_every_hundredth_call() -> None:
    state.calls += 1
    if state.calls % 100 == 0:
        by_number[state.calls] = bytes(1024)


def _fixed(size: int) -> Callable[[], object]:
    def keeps_nothing() -> int:
        return len(bytes(size))

    return keeps_nothing


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize(
    ("leaking", "holder"),
    [
        pytest.param(keeps_200_bytes, "kept", marks=pytest.mark.once),
        (keeps_1_kib, "kept"),
        pytest.param(keeps_64_kib, "kept", marks=pytest.mark.once),
        (keeps_1_kib_every_hundredth_call, "by_number"),
    ],
)
def test_kept_bytes_are_found_and_their_holder_named(leaking: Callable[[], None], holder: str, meter: str) -> None:
    report = find_leaks(leaking, meter=meter, min_duration=0.2)

    assert report.is_leak
    assert report.findings[0].metric == "bytes"
    assert any(f"{__name__}.{holder}" in line for line in report.holders[:2]), report


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize("size", [200, 1024, 64 * 1024])
def test_fixed_version_is_clean(size: int, meter: str) -> None:
    report = find_leaks(_fixed(size), meter=meter)

    assert report.answer is Verdict.CLEAN
    assert report.calls == 250
    assert report.holders == ()


@pytest.mark.once
def test_rate_is_per_call() -> None:
    report = find_leaks(keeps_1_kib, min_duration=0)

    assert 1024 <= report.findings[0].per_call < 1200


@pytest.mark.once
def test_calls_stop_at_the_maximum_growth() -> None:
    report = find_leaks(keeps_64_kib)

    assert report.is_leak
    assert len(kept) * 64 < 200 * 1024  # KiB


async def leaves_a_task() -> None:
    kept.append(asyncio.create_task(asyncio.Event().wait(), name=f"price feed {len(kept)}"))
    await asyncio.sleep(0)


async def awaits_its_task() -> None:
    await asyncio.create_task(asyncio.sleep(0), name="price feed")


async def test_leftover_tasks_are_found_and_named() -> None:
    report = await find_leaks(leaves_a_task, calls=4, min_duration=0)
    tasks = [one for one in kept if isinstance(one, asyncio.Task)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert report.is_leak
    assert "tasks" in {one.metric for one in report.findings if one.answer is Verdict.LEAK}
    assert any(line.startswith("task price feed #") for line in report.holders)


async def test_awaited_tasks_are_clean() -> None:
    report = await find_leaks(awaits_its_task, calls=20)

    assert report.answer is Verdict.CLEAN


async def keeps_in_a_task() -> None:
    async def work() -> None:
        kept.append(bytes(500))

    await asyncio.create_task(work())


@pytest.mark.once
async def test_memory_kept_by_a_started_task_is_charged() -> None:
    report = await find_leaks(keeps_in_a_task, calls=20, min_duration=0)

    assert report.is_leak
    assert report.findings[0].metric == "bytes"
    assert any(f"{__name__}.kept" in line for line in report.holders)


@pytest.mark.once
async def test_memory_kept_by_another_task_is_not_charged() -> None:
    mine: list[bytes] = []

    async def other() -> None:
        while True:
            mine.append(bytes(10_000))
            await asyncio.sleep(0)

    async def innocent() -> None:
        await asyncio.sleep(0)

    task = asyncio.create_task(other())
    report = await find_leaks(innocent, calls=200, min_duration=0, timeout=1)
    task.cancel()

    (counted,) = [one for one in report.findings if one.metric == "bytes"]
    assert counted.answer is Verdict.CLEAN


@pytest.mark.skipif(descriptors() is None, reason="descriptors are listed on Linux only")
@pytest.mark.once
def test_leftover_descriptors_are_found_and_named() -> None:
    def opens() -> None:
        kept.append(os.open(os.devnull, os.O_RDONLY))

    def opens_and_closes() -> None:
        os.close(os.open(os.devnull, os.O_RDONLY))

    report = find_leaks(opens, calls=10, min_duration=0)

    assert report.is_leak
    assert any(line.startswith(f"descriptor {os.devnull}") for line in report.holders)
    assert find_leaks(opens_and_closes, calls=10).answer is Verdict.CLEAN


def test_leftover_threads_are_found_and_named() -> None:
    def starts() -> None:
        release = threading.Event()
        thread = threading.Thread(target=release.wait, name=f"importer {len(kept)}")
        thread.start()
        kept.extend((release, thread))

    def starts_and_joins() -> None:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

    report = find_leaks(starts, calls=4)

    assert report.is_leak
    assert any(line.startswith("thread importer #") for line in report.holders)
    assert find_leaks(starts_and_joins, calls=4).answer is not Verdict.LEAK


@pytest.mark.skipif(malloc_bytes() is None, reason="the C library does not tell what is in use")
def test_leftover_native_memory_is_found() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    held: list[int] = []

    def takes() -> None:
        held.append(library.malloc(4096))

    def takes_and_gives() -> None:
        library.free(library.malloc(4096))

    report = find_leaks(takes, min_duration=0)
    for address in held:
        library.free(address)

    assert {one.metric for one in report.findings if one.answer is Verdict.LEAK} >= {"native bytes"}
    assert find_leaks(takes_and_gives).answer is Verdict.CLEAN


@pytest.mark.once
def test_cache_is_clean_once_it_is_full() -> None:
    def remembers() -> None:
        state.calls += 1
        _cached(state.calls)

    report = find_leaks(remembers, min_duration=20)

    assert report.answer is Verdict.CLEAN


@pytest.mark.once
def test_bounded_cache_that_fills_up_is_inconclusive() -> None:
    def remembers() -> None:
        state.calls += 1
        _never_full(state.calls)

    report = find_leaks(remembers, min_duration=0)

    assert report.answer is Verdict.INCONCLUSIVE
    assert "lru_cache that may have 1,000,000,000 entries" in str(report)


def _runs_a_loop() -> None:
    asyncio.run(asyncio.sleep(0))


def _imports() -> None:
    import decimal

    decimal.Decimal(1)


def _logs() -> None:
    logging.getLogger("memtools.tests.leaks").isEnabledFor(logging.DEBUG)


def _replaces() -> None:
    state.last = bytes(10_000)


def _churns() -> None:
    [bytes(number) for number in range(100)]


def _makes_a_cycle() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize("healthy", [_runs_a_loop, _imports, _logs, _replaces, _churns, _makes_a_cycle])
def test_growth_that_stops_is_clean(healthy: Callable[[], None], meter: str) -> None:
    report = find_leaks(healthy, meter=meter)

    assert report.answer is Verdict.CLEAN, report


def test_leak_raises_with_growth_and_holder() -> None:
    with pytest.raises(LeakError, match="keeps_1_kib leaks") as caught:
        assert_no_leaks(keeps_1_kib, min_duration=0)

    assert isinstance(caught.value, AssertionError)
    assert "KiB per call" in str(caught.value)
    assert f"{__name__}.kept" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.once
async def test_leak_of_a_coroutine_function_raises() -> None:
    async def keeps() -> None:
        kept.append(bytes(300))

    with pytest.raises(LeakError):
        await assert_no_leaks(keeps, min_duration=0)


def test_clean_function_returns_its_report() -> None:
    report = assert_no_leaks(_fixed(10))

    assert report.answer is Verdict.CLEAN
    assert report.to_dict()["answer"] == "clean"
    assert "clean" in repr(report)


@pytest.mark.once
def test_inconclusive_result_is_warned_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def remembers() -> None:
        state.calls += 1
        _never_full(state.calls)

    with pytest.warns(LeakWarning, match="inconclusive"):
        assert_no_leaks(remembers, min_duration=0)

    assert "inconclusive" in caplog.text


def test_arguments_are_passed_to_the_function() -> None:
    seen: set[tuple[int, str]] = set()

    def takes(number: int, *, text: str) -> None:
        seen.add((number, text))

    find_leaks(takes, args=(1,), kwargs={"text": "x"})

    assert seen == {(1, "x")}


@pytest.mark.once
def test_exception_of_the_function_passes() -> None:
    def fails() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        find_leaks(fails)


async def test_cancellation_passes_and_ends_the_calls() -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    search = asyncio.ensure_future(find_leaks(hangs))
    await asyncio.sleep(0.01)
    search.cancel()

    with pytest.raises(asyncio.CancelledError):
        await search
    assert asyncio.get_running_loop().get_task_factory() is None


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        ("rounds", 0), ("calls", -1), ("calls", True), ("warmup", -1), ("tolerance", float("nan")),
        ("min_duration", -1), ("timeout", "soon"), ("meter", "exact"),
    ],
)  # fmt: skip
def test_invalid_option_is_refused_before_the_first_call(choice: str, value: Any) -> None:
    calls: list[None] = []

    with pytest.raises(ConfigError, match=choice):
        find_leaks(lambda: calls.append(None), **{choice: value})

    assert calls == []


def test_object_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="function"):
        find_leaks("handler")  # type: ignore[call-overload]


def _rows() -> Iterator[int]:
    kept.append("the body of a generator function has run")
    yield 1


async def _pages() -> AsyncIterator[int]:
    kept.append("the body of an asynchronous generator function has run")
    yield 1


class _Rows:
    def __call__(self) -> Iterator[int]:
        return _rows()


class _InheritsRows(_Rows):
    def method(self) -> Iterator[int]:
        yield 1


class _CallsAGenerator:
    def __call__(self) -> Iterator[int]:
        yield 1


class _Awaitable:
    def __await__(self) -> Iterator[None]:
        yield


NOT_RUN_BY_A_CALL = [
    (_rows, "generator function"),
    (_pages, "generator function"),
    (functools.partial(_rows), "generator function"),
    (functools.partial(functools.partial(_pages)), "generator function"),
    (_CallsAGenerator(), "generator function"),
    (functools.partial(_CallsAGenerator()), "generator function"),
    (_InheritsRows().method, "generator function"),
    (types.coroutine(_rows), "generator function"),
    (_InheritsRows(), "only returns a generator"),
    (lambda: (number for number in [1]), "only returns a generator"),
    (lambda: _pages(), "only returns a generator"),
    (contextlib.contextmanager(_rows), "only returns a context manager"),
    (contextlib.asynccontextmanager(_pages), "only returns a context manager"),
    (lambda: asyncio.sleep(0), "only returns a coroutine"),
    (_Awaitable, "only returns an awaitable"),
    (lambda: map(kept.append, [1]), r"only returns map\(\), which has called nothing yet"),
    (lambda: itertools.starmap(kept.append, [(1,)]), r"only returns starmap\(\)"),
]


@pytest.mark.parametrize(("function", "reason"), NOT_RUN_BY_A_CALL)
@pytest.mark.parametrize("search", [find_leaks, lambda function: StressTest(function).run()], ids=["find", "stress"])
def test_function_whose_code_never_runs_is_refused(
    function: Callable[[], Any], reason: str, search: Callable[[Any], Any]
) -> None:
    with pytest.raises(ConfigError, match=reason):
        search(function)

    assert kept == []


@pytest.mark.parametrize("result", [lambda: asyncio.sleep(0), _rows, _pages], ids=["coroutine", "rows", "pages"])
@pytest.mark.parametrize("search", [find_leaks, lambda function: StressTest(function).run()], ids=["find", "stress"])
async def test_coroutine_function_that_returns_code_is_refused(
    result: Callable[[], Any], search: Callable[[Any], Any]
) -> None:
    async def returns() -> Any:
        return result()

    with pytest.raises(ConfigError, match="only returns a"):
        await search(returns)

    assert kept == []


class _Keeps:
    async def __call__(self) -> None:
        kept.append(bytes(500))


class _InheritsKeeps(_Keeps): ...


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(_Keeps(), id="object", marks=pytest.mark.once),
        pytest.param(_InheritsKeeps(), id="inherited"),
        pytest.param(functools.partial(_InheritsKeeps()), id="partial of an object", marks=pytest.mark.once),
        pytest.param(functools.partial(_Keeps.__call__, _Keeps()), id="partial of a function"),
    ],
)
async def test_coroutine_functions_of_every_shape_are_awaited(function: Callable[[], Any]) -> None:
    report = await find_leaks(function, calls=20, min_duration=0)

    assert report.is_leak


def test_class_whose_objects_are_coroutine_functions_is_called() -> None:
    report = find_leaks(_Keeps)

    assert report.answer is Verdict.CLEAN
    assert kept == []


def test_function_that_returns_objects_of_new_types_is_clean() -> None:
    report = find_leaks(lambda: type("New", (), {})(), tolerance=64)

    assert report.answer is Verdict.CLEAN


def test_traceback_of_a_leak_ends_in_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from memtools.testing import assert_no_leaks

        kept = []

        def test_leaks():
            assert_no_leaks(lambda: kept.append(bytes(500)), min_duration=0)

        def test_fails():
            assert_no_leaks(lambda: 1 / 0)
        """
    )

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.stdout.no_fnmatch_line("*_find_leaks.py:*")
    result.stdout.fnmatch_lines(["*test_traceback_of_a_leak_ends_in_the_test.py:6: LeakError"])


def test_progress_is_hidden_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    find_leaks(_fixed(10))

    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal on Windows")
def test_progress_is_shown_on_a_terminal() -> None:
    import pty

    code = "from memtools.testing import find_leaks; find_leaks(lambda: None)"
    above, below = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", code], stderr=below, check=True)
        shown = os.read(above, 10_000).decode()
    finally:
        os.close(above)
        os.close(below)

    assert "round 5, 250 calls" in shown
