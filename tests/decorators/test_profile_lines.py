"""`@profile_memory(lines=True)`: memory of each line of a plain function."""

import inspect
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from memtools import profile_memory
from memtools.errors import ConfigError, MissingExtraError

kept: list[bytearray] = []


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    before = sys.gettrace()
    yield
    kept.clear()
    assert sys.gettrace() is before


def load(size: int) -> int:
    block = bytearray(b"x" * size)
    kept.append(block)
    if size < 0:
        return -1
    return len(block)


def _line_number(text: str) -> int:
    lines, first = inspect.getsourcelines(load)
    return first + next(place for place, line in enumerate(lines) if text in line)


def _rows(profiled: Any) -> dict[int, Any]:
    return {row.number: row for row in profiled.memory.lines.rows()}


def test_lines_show_the_line_that_allocates(trimmed_heap: None) -> None:
    profiled = profile_memory(lines=True)(load)

    assert profiled(40_000_000) == 40_000_000

    rows = _rows(profiled)
    largest = max(rows.values(), key=lambda row: row.grown_bytes)
    assert largest.number == _line_number("bytearray(")
    assert largest.text.strip() == 'block = bytearray(b"x" * size)'
    assert 35_000_000 < largest.grown_bytes < 90_000_000
    assert _line_number("return -1") not in rows


def test_lines_of_several_calls_are_summed_without_carry_over(trimmed_heap: None) -> None:
    profiled = profile_memory(lines=True)(load)
    for _ in range(3):
        profiled(40_000_000)

    row = _rows(profiled)[_line_number("bytearray(")]
    assert row.hits == profiled.memory.lines.calls == 3
    assert 110_000_000 < row.grown_bytes < 250_000_000


def test_line_profiled_calls_are_measured_as_well() -> None:
    profiled = profile_memory(lines=True, meter="tracemalloc")(load)
    profiled(1_000_000)

    assert profiled.memory.last.peak_bytes > 1_000_000
    assert profiled.memory.statistics().calls == 1


def test_calls_left_out_by_sampling_are_not_line_profiled() -> None:
    profiled = profile_memory(lines=True, sample_every=2)(load)
    for _ in range(4):
        profiled(10)

    assert profiled.memory.lines.calls == 2


def test_concurrent_call_in_another_thread_is_not_line_profiled() -> None:
    inside, release = threading.Event(), threading.Event()

    @profile_memory(lines=True)
    def waits(first: bool) -> None:
        if first:
            inside.set()
            release.wait(10)

    thread = threading.Thread(target=waits, args=(True,))
    thread.start()
    inside.wait(10)
    waits(False)
    release.set()
    thread.join()

    assert waits.memory.lines is not None
    assert waits.memory.lines.calls == 1
    assert waits.memory.statistics().calls == 2


def test_call_that_raises_keeps_its_lines() -> None:
    @profile_memory(lines=True)
    def fails() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fails()

    assert fails.memory.lines is not None
    assert fails.memory.lines.calls == 1


def test_recursive_call_is_line_profiled_once() -> None:
    @profile_memory(lines=True)
    def down(depth: int) -> int:
        return depth and down(depth - 1)

    assert down(3) == 0
    assert down.memory.lines is not None
    assert down.memory.lines.calls == 1


def test_methods_are_line_profiled() -> None:
    class Counter:
        @profile_memory(lines=True)
        def open(self, number: int) -> int:
            return number

        @classmethod
        @profile_memory(lines=True)
        def make(cls) -> "Counter":
            return cls()

    assert Counter().open(7) == 7
    assert isinstance(Counter.make(), Counter)
    assert Counter.open.memory.lines is not None
    assert Counter.open.memory.lines.calls == 1


def test_table_of_lines_shows_the_source() -> None:
    profiled = profile_memory(lines=True)(load)
    profiled(1000)

    lines = str(profiled.memory.lines).splitlines()

    assert lines[0] == f"{__file__}, 1 calls"
    assert any(line.endswith("    kept.append(block)") for line in lines)
    profiled.memory.clear()
    assert profiled.memory.lines.rows() == ()


async def _coroutine() -> None:
    return None


def _generator() -> Iterator[None]:
    yield


async def _async_generator() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("function", [_coroutine, _generator, _async_generator])
def test_lines_of_a_coroutine_or_generator_raise_config_error(function: Any) -> None:
    with pytest.raises(ConfigError, match="memory_profiler measures plain functions only"):
        profile_memory(lines=True)(function)


def test_lines_of_a_function_without_source_raise_config_error() -> None:
    with pytest.raises(ConfigError, match="a function whose source file can be read"):
        profile_memory(lines=True)(len)


def test_missing_memory_profiler_raises_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memory_profiler", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'memtools\[lines\]'"):
        profile_memory(lines=True)(load)


def test_disabled_decorator_does_not_import_memory_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memory_profiler", None)

    assert profile_memory(lines=True, enabled=False)(load) is load


def test_profile_without_lines_has_no_lines() -> None:
    assert profile_memory(load).memory.lines is None
