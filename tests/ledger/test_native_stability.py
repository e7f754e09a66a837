"""Faults that long random runs found: threads without the GIL, sub-interpreters, forks, loops."""

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from memtools.errors import BudgetExceeded
from memtools.ledger import choose_meter, native_reason, open_owners
from memtools.scopes import memory_scope

if native_reason():
    pytest.skip(f"no native ledger: {native_reason()}", allow_module_level=True)

from memtools.ledger import _native

PROGRAMS = Path(__file__).with_name("programs")
MIB = 2**20


def bare_library() -> ctypes.CDLL:
    """The allocators as threads of a C library call them: without the GIL."""
    library = ctypes.CDLL(None)
    library.PyMem_RawMalloc.restype = ctypes.c_void_p
    library.PyMem_RawMalloc.argtypes = [ctypes.c_size_t]
    library.PyMem_RawFree.restype = None
    library.PyMem_RawFree.argtypes = [ctypes.c_void_p]
    return library


def test_hook_check_counts_no_block_of_other_threads_twice() -> None:
    bare = bare_library()
    enough = threading.Event()

    def churn() -> None:
        while not enough.is_set():
            bare.PyMem_RawFree(bare.PyMem_RawMalloc(100))

    threads = [threading.Thread(target=churn) for _ in range(3)]
    meter = choose_meter("native")
    meter.acquire()
    try:
        for thread in threads:
            thread.start()
        counter = _native.Counter()
        kept: list[bytes] = []
        for number in range(20_000):
            _native.switch(counter)
            kept.append(b"x" * 1000)
            assert _native.hooks_in_place()
            _native.switch(None)
            if number % 1000 == 999:
                kept.clear()
        kept.clear()
    finally:
        enough.set()
        for thread in threads:
            thread.join()
        meter.release()

    assert counter.read()[0] < 1000  # an int or two in a free list


def test_hook_check_changes_no_figure() -> None:
    meter = choose_meter("native")
    meter.acquire()
    try:
        counter = _native.Counter()
        _native.switch(counter)
        answers = _native.hooks_in_place(), _native.hooks_in_place()
        _native.switch(None)
        figures = counter.read()
    finally:
        meter.release()

    assert all(answers)
    assert figures[0] in (0, 56)  # the tuple of the results


BY_PYTHON = ["python", "pool", "private module"] if sys.version_info >= (3, 14) else ["python"]


@pytest.mark.parametrize("by", [*BY_PYTHON, "C, seen by the next owner"])
def test_sub_interpreter_module_loaded_later_is_noticed(by: str) -> None:
    if by not in BY_PYTHON and importlib.util.find_spec("_testcapi") is None:
        pytest.skip("this distribution of Python comes without _testcapi")

    assert python("make_sub_interpreter_later.py", by) == "checked"


def python(program: str, *arguments: str) -> str:
    command = [sys.executable, "-X", "faulthandler", str(PROGRAMS / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tempfile.gettempdir())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("gil", ["own", "shared"])
def test_sub_interpreter_stops_counting_for_good(gil: str) -> None:
    assert python("make_sub_interpreter.py", gil) == "checked"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="the public modules for sub-interpreters came with Python 3.14")
def test_asyncio_does_not_bring_the_audit_hook() -> None:
    assert python("import_without_audit_hook.py") == "checked"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="the public modules for sub-interpreters came with Python 3.14")
def test_meters_in_a_sub_interpreter_say_why_they_are_missing() -> None:
    assert python("inside_sub_interpreter.py") == "checked"


def test_earlier_sub_interpreter_prevents_counting() -> None:
    assert python("make_sub_interpreter_first.py") == "rss"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_drops_numbers_queued_by_other_threads() -> None:
    assert python("fork_beside_threads.py") == "all counted"


class Block:
    def __init__(self) -> None:
        self.left: list[str] = []

    def __enter__(self) -> None:
        self.left.append("in")

    def __exit__(self, *_: object) -> None:
        self.left.append("out")


def spin_for_ever(block: Block) -> None:
    try:
        with memory_scope("loop", meter="native", budget=MIB), block:
            made: object = None
            while True:
                made = (made, [made] * 100)
    except BudgetExceeded as error:
        block.left.append(error.scope)


def spin_over_a_range(block: Block) -> None:
    try:
        with memory_scope("loop", meter="native", budget=MIB), block:
            made: object = None
            for number in range(10**9):
                made = (made, number, [made] * 100)
    except BudgetExceeded as error:
        block.left.append(error.scope)


@pytest.mark.parametrize("spin", [spin_for_ever, spin_over_a_range], ids=lambda spin: spin.__name__)
def test_owner_stopped_in_a_loop_without_calls_runs_its_finally(spin: Callable[[Block], None]) -> None:
    block = Block()

    thread = threading.Thread(target=spin, args=(block,))
    thread.start()
    thread.join()

    assert block.left == ["in", "out", "loop"]
    assert not open_owners()


def test_thread_is_stopped_while_tracemalloc_starts_and_stops() -> None:
    assert python("stop_beside_tracemalloc.py") == "1 left"
