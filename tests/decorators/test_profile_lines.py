"""With lines=True memory_profiler follows a plain function line by line, one call at a time."""

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
def fresh() -> Iterator[None]:
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


def _number_of(text: str) -> int:
    lines, first = inspect.getsourcelines(load)
    return first + next(place for place, line in enumerate(lines) if text in line)


def _rows(profiled: Any) -> dict[int, Any]:
    return {row.number: row for row in profiled.memory.lines.rows()}


def test_the_line_that_takes_the_memory_is_named(trimmed_heap: None) -> None:
    profiled = profile_memory(lines=True)(load)

    assert profiled(40_000_000) == 40_000_000

    rows = _rows(profiled)
    largest = max(rows.values(), key=lambda row: row.grown_bytes)
    assert largest.number == _number_of("bytearray(")
    assert largest.text.strip() == 'block = bytearray(b"x" * size)'
    assert 35_000_000 < largest.grown_bytes < 90_000_000
    assert _number_of("return -1") not in rows


def test_calls_are_added_up_and_each_begins_anew(trimmed_heap: None) -> None:
    profiled = profile_memory(lines=True)(load)
    for _ in range(3):
        profiled(40_000_000)

    row = _rows(profiled)[_number_of("bytearray(")]
    assert row.hits == profiled.memory.lines.calls == 3
    assert 110_000_000 < row.grown_bytes < 250_000_000


def test_the_calls_have_an_account_as_ever() -> None:
    profiled = profile_memory(lines=True, meter="tracemalloc")(load)
    profiled(1_000_000)

    assert profiled.memory.last.peak_bytes > 1_000_000
    assert profiled.memory.statistics().calls == 1


def test_calls_that_are_left_out_by_sampling_are_not_followed() -> None:
    profiled = profile_memory(lines=True, sample_every=2)(load)
    for _ in range(4):
        profiled(10)

    assert profiled.memory.lines.calls == 2


def test_a_call_in_another_thread_goes_straight_through_while_one_is_followed() -> None:
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


def test_an_exception_passes_and_the_lines_are_kept() -> None:
    @profile_memory(lines=True)
    def fails() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fails()

    assert fails.memory.lines is not None
    assert fails.memory.lines.calls == 1


def test_recursion_is_one_followed_call() -> None:
    @profile_memory(lines=True)
    def down(depth: int) -> int:
        return depth and down(depth - 1)

    assert down(3) == 0
    assert down.memory.lines is not None
    assert down.memory.lines.calls == 1


def test_methods_are_followed_as_well() -> None:
    class Desk:
        @profile_memory(lines=True)
        def open(self, number: int) -> int:
            return number

        @classmethod
        @profile_memory(lines=True)
        def make(cls) -> "Desk":
            return cls()

    assert Desk().open(7) == 7
    assert isinstance(Desk.make(), Desk)
    assert Desk.open.memory.lines is not None
    assert Desk.open.memory.lines.calls == 1


def test_the_table_reads_as_the_source_does() -> None:
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
def test_what_is_no_plain_function_is_refused_when_decorating(function: Any) -> None:
    with pytest.raises(ConfigError, match="memory_profiler measures plain functions only"):
        profile_memory(lines=True)(function)


def test_a_function_without_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="a function whose source file can be read"):
        profile_memory(lines=True)(len)


def test_without_the_library_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memory_profiler", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'memtools\[lines\]'"):
        profile_memory(lines=True)(load)


def test_nothing_is_imported_where_decorators_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memory_profiler", None)

    assert profile_memory(lines=True, enabled=False)(load) is load


def test_without_it_there_are_no_lines() -> None:
    assert profile_memory(load).memory.lines is None
