"""Faults that long random runs found: threads without the GIL, sub-interpreters, forks, loops."""

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

import pytest

from memtools.errors import BudgetExceeded
from memtools.ledger import choose_meter, native_reason, open_owners
from memtools.scopes import memory_scope

if native_reason():
    pytest.skip(f"no native ledger: {native_reason()}", allow_module_level=True)

from memtools.ledger import _native

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


SUB_INTERPRETER = """
import sys
from memtools.ledger import choose_meter, native_reason, active_owner
from memtools.ledger._ledger import current_usage
from memtools.scopes import memory_scope
try:
    import _interpreters as made
except ImportError:
    import _xxsubinterpreters as made
before = memory_scope("before", meter="native")
with before:
    kept = [bytes(1000) for _ in range(100)]
assert before.usage.exact and before.owner.live_bytes >= 100_000
with memory_scope("open", meter="native") as opened:
    own = bytearray(500_000)
    if sys.argv[1] == "own":
        ident = made.create()
    else:
        ident = made.create(isolated=False) if sys.version_info < (3, 13) else made.create("legacy")
    made.run_string(ident, "x = [[n] for n in range(10000)]; del x") if hasattr(made, "run_string") else None
    during = current_usage(opened.owner)
made.destroy(ident)
after = memory_scope("after", meter="native")
with after:
    more = bytearray(500_000)
for usage in (during, opened.usage, after.usage):
    assert not usage.exact, usage
    assert "sub-interpreter" in usage.note, usage.note
assert opened.usage.peak_bytes >= 500_000
assert before.owner.live_bytes == before.usage.retained_bytes  # what still lives is not known any more
assert before.usage.exact
assert "sub-interpreter" in native_reason()
assert choose_meter().name == "rss"
print("told")
"""
LATER = """
import gc, sys
from memtools.ledger import native_reason, statistics
from memtools.scopes import memory_scope
with memory_scope("before", meter="native"):
    pass
def finders():
    return [one for one in sys.meta_path if type(one).__module__.startswith("memtools")]
assert len(finders()) == 1
if sys.argv[1] == "python":
    try:
        import _interpreters as made
    except ImportError:
        import _xxsubinterpreters as made
    assert finders() == []
    made.destroy(made.create())
elif sys.argv[1] == "C, seen by the next owner":
    import _testcapi
    _testcapi.run_in_subinterp("pass")
    assert finders() and not native_reason()
    statistics()
with memory_scope("after", meter="native") as after:
    pass
assert not after.usage.exact
assert "sub-interpreter" in native_reason()
print("told")
"""
AFTER_ONE = """
try:
    import _interpreters as made
except ImportError:
    import _xxsubinterpreters as made
made.destroy(made.create())
from memtools.ledger import choose_meter, native_reason
assert "sub-interpreter" in native_reason(), native_reason()
print(choose_meter().name)
"""


@pytest.mark.parametrize("by", ["python", "C, seen by the next owner"])
def test_sub_interpreter_module_loaded_later_is_noticed(by: str) -> None:
    if by != "python" and importlib.util.find_spec("_testcapi") is None:
        pytest.skip("this distribution of Python comes without _testcapi")

    assert python(LATER, by) == "told"


def python(program: str, *arguments: str) -> str:
    command = [sys.executable, "-X", "faulthandler", "-c", program, *arguments]
    # In another folder, so that `-c` imports the installed package and not the checkout.
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tempfile.gettempdir())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("gil", ["own", "shared"])
def test_sub_interpreter_stops_counting_for_good(gil: str) -> None:
    assert python(SUB_INTERPRETER, gil) == "told"


def test_earlier_sub_interpreter_prevents_counting() -> None:
    assert python(AFTER_ONE) == "rss"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_drops_numbers_queued_by_other_threads() -> None:
    program = """
import ctypes, os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from memtools.ledger import _native, choose_meter
bare = ctypes.CDLL(None)
bare.PyMem_RawMalloc.restype = ctypes.c_void_p
bare.PyMem_RawFree.argtypes = [ctypes.c_void_p]
bare.PyMem_RawFree.restype = None
sys.setswitchinterval(1e-6)
choose_meter("native").acquire()
counter = _native.Counter()
enough = False
def churn():
    _native.switch(counter)
    while not enough:
        bare.PyMem_RawFree(bare.PyMem_RawMalloc(100))
    _native.switch(None)
threads = [threading.Thread(target=churn) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(150):
    child = os.fork()
    if not child:
        code = 1
        try:
            before = counter.read()[0]
            _native.switch(counter)
            block = bare.PyMem_RawMalloc(5000)
            _native.switch(None)
            during = counter.read()[0]
            bare.PyMem_RawFree(block)
            code = 0 if during - before >= 5000 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
enough = True
for thread in threads: thread.join()
print("all counted")
"""
    assert python(program) == "all counted"


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
    program = """
import threading, time, tracemalloc
from memtools.errors import BudgetExceeded
from memtools.scopes import memory_scope
told = []
def work():
    for _ in range(30):
        try:
            with memory_scope("runaway", meter="native", budget=200_000):
                kept = [bytes(1000) for _ in range(2_000)]
        except BudgetExceeded as error:
            told.append(error.scope)
with memory_scope("first", meter="native"):
    pass  # our hooks are below those of tracemalloc, or its end would take ours out
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
while any(thread.is_alive() for thread in threads):
    tracemalloc.start()
    time.sleep(0.002)
    tracemalloc.stop()
    time.sleep(0.001)
assert len(told) == 90, len(told)
time.sleep(0.5)
print(threading.active_count(), "left")
"""
    assert python(program) == "1 left"
