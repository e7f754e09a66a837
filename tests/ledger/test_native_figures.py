"""The native counter compared with a model, and with tracemalloc, in random programs."""

import ctypes
import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from memtools.ledger import choose_meter, native_reason

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

SMALLEST = 16  # the least that a block counts
TRACE = 16  # tracemalloc's own bytes per block, in Python's raw domain, if it was started after the hooks
KEPT_FOR_LATER = 512  # tuples and the like that a call through ctypes leaves in the interpreter's free lists
TEMPORARIES = 4096  # what a call through ctypes makes and frees again, at most

# Without `explain`: it traces every line, and its records would be charged.
UNDISTURBED = settings(phases=(Phase.explicit, Phase.generate, Phase.shrink))

sizes = st.one_of(
    st.integers(0, 600),
    st.sampled_from([15, 16, 17, 511, 512, 513, 65_535, 65_536, 65_537]),
    st.integers(0, 3_000_000),
)


@pytest.fixture(scope="module")
def native() -> Iterator[Any]:
    """The C extension, counting."""
    from memtools.ledger import _native

    meter = choose_meter("native")
    meter.acquire()
    gc.collect()
    gc.disable()  # or callbacks of the collector allocate while an owner is current
    yield _native
    gc.enable()
    meter.release()


class Domain:
    """The four functions of one allocator domain; `without_gil` calls them as a thread of a C library would."""

    def __init__(self, prefix: str, *, without_gil: bool = False) -> None:
        library = ctypes.CDLL(None) if without_gil else ctypes.PyDLL(None)
        self.malloc = self._function(library[f"{prefix}Malloc"], ctypes.c_size_t)
        self.calloc = self._function(library[f"{prefix}Calloc"], ctypes.c_size_t, ctypes.c_size_t)
        self.realloc = self._function(library[f"{prefix}Realloc"], ctypes.c_void_p, ctypes.c_size_t)
        self.free = self._function(library[f"{prefix}Free"], ctypes.c_void_p)
        self.free.restype = None

    @staticmethod
    def _function(function: Any, *arguments: type) -> Any:
        function.argtypes = arguments
        function.restype = ctypes.c_void_p
        return function


DOMAINS = {
    "raw": Domain("PyMem_Raw"),
    "raw without the GIL": Domain("PyMem_Raw", without_gil=True),
    "mem": Domain("PyMem_"),
    "obj": Domain("PyObject_"),
}


@dataclass
class Modelled:
    """What one owner should hold; the tree is that of the counters."""

    counter: Any
    parent: "Modelled | None"
    live: int = 0
    peak: int = 0

    def add(self, change: int) -> None:
        above: Modelled | None = self
        while above is not None:
            above.live += change
            above.peak = max(above.peak, above.live)
            above = above.parent


@dataclass
class Block:
    address: int
    size: int
    owner: Modelled
    domain: str


@dataclass
class Program:
    """Allocates blocks in every domain and updates the model."""

    native: Any
    owners: list[Modelled]
    blocks: list[Block] = field(default_factory=list)

    def make(self, owner: Modelled, domain: str, size: int, zeroed: bool) -> None:
        address = self._charged(
            owner, lambda: DOMAINS[domain].calloc(1, size) if zeroed else DOMAINS[domain].malloc(size)
        )
        self.blocks.append(Block(address, size, owner, domain))
        owner.add(max(size, SMALLEST))

    def resize(self, which: int, owner: Modelled, size: int) -> None:
        block = self.blocks[which % len(self.blocks)]
        block.address = self._charged(owner, lambda: DOMAINS[block.domain].realloc(block.address, size))
        block.owner.add(-max(block.size, SMALLEST))
        owner.add(max(size, SMALLEST))
        block.owner, block.size = owner, size

    def fail_to_resize(self, which: int, owner: Modelled) -> None:
        block = self.blocks[which % len(self.blocks)]
        assert not self._charged(owner, lambda: DOMAINS[block.domain].realloc(block.address, 2**62) or 0)

    def free(self, which: int, owner: Modelled) -> None:
        block = self.blocks.pop(which % len(self.blocks))
        self._charged(owner, lambda: DOMAINS[block.domain].free(block.address) or 0)
        block.owner.add(-max(block.size, SMALLEST))

    def _charged(self, owner: Modelled, act: Callable[[], int]) -> int:
        self.native.switch(owner.counter)
        address = act()
        self.native.switch(None)
        return address + 0  # a new int: the one of ctypes is charged to the owner

    def check(self) -> None:
        for owner in self.owners:
            live, peak, _ = owner.counter.read()
            assert 0 <= live - owner.live <= KEPT_FOR_LATER, (live, owner.live)
            assert 0 <= peak - owner.peak <= KEPT_FOR_LATER + TEMPORARIES


def _tree(native: Any) -> list[Modelled]:
    root = Modelled(native.Counter(), None)
    child = Modelled(native.Counter(root.counter), root)
    grandchild = Modelled(native.Counter(child.counter), child)
    sibling = Modelled(native.Counter(root.counter), root)
    unrelated = Modelled(native.Counter(), None)
    return [root, child, grandchild, sibling, unrelated]


acts = st.one_of(
    st.tuples(st.just("make"), st.integers(0, 4), st.sampled_from(sorted(DOMAINS)), sizes, st.booleans()),
    st.tuples(st.just("resize"), st.integers(0, 99), st.integers(0, 4), sizes),
    st.tuples(st.just("fail"), st.integers(0, 99), st.integers(0, 4)),
    st.tuples(st.just("free"), st.integers(0, 99), st.integers(0, 4)),
)


@settings(UNDISTURBED)
@given(program=st.lists(st.tuples(acts, st.booleans()), max_size=40))
def test_every_block_is_charged_to_its_owner_and_all_ancestors(
    native: Any, program: list[tuple[tuple[Any, ...], bool]]
) -> None:
    owners = _tree(native)
    books = Program(native, owners)

    for act, elsewhere in program:
        if act[0] != "make" and not books.blocks:
            continue
        step = {
            "make": lambda act=act: books.make(owners[act[1]], *act[2:]),
            "resize": lambda act=act: books.resize(act[1], owners[act[2]], act[3]),
            "fail": lambda act=act: books.fail_to_resize(act[1], owners[act[2]]),
            "free": lambda act=act: books.free(act[1], owners[act[2]]),
        }[act[0]]
        if elsewhere:
            _in_a_thread(step)
        else:
            step()
    books.check()

    while books.blocks:
        books.free(0, owners[4])
    assert all(0 <= owner.counter.read()[0] <= KEPT_FOR_LATER for owner in owners)


def _in_a_thread(step: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            step()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    assert not failed, failed


# One function per owner, each in a file of its own, so that tracemalloc can distinguish their blocks. No lists, dicts,
# floats or short tuples: the interpreter keeps some of them in free lists and reuses them, which no allocator sees;
# tracemalloc sees it, by a call of the interpreter.
FUNCTIONS = (Path(__file__).with_name("programs") / "block_functions.py").read_text()


@settings(UNDISTURBED, max_examples=40)
@given(
    acts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 100_000)), max_size=30),
    threaded=st.booleans(),
)
def test_live_bytes_equal_those_of_tracemalloc(native: Any, acts: list[tuple[int, int, int]], threaded: bool) -> None:
    counters = [native.Counter() for _ in range(3)]
    kept: list[list[object]] = [[], [], []]
    functions: list[dict[str, Any]] = [{}, {}, {}]

    before: list[int] = []

    def run() -> None:
        for names in functions:
            # tracemalloc keeps each line and depth in a block of Python's raw domain.
            grown: list[object] = []
            names["grow"](native.switch, None, grown, 7)
            names["trim"](native.switch, None, grown, 3)
            del grown
        before.extend(_traced(number) for number in range(3))
        for who, whose, size in acts:
            if size % 3:
                functions[who]["grow"](native.switch, counters[who], kept[whose], size)
            else:
                functions[who]["trim"](native.switch, counters[who], kept[whose], size % 7)

    tracemalloc.start(1)
    try:
        for number, names in enumerate(functions):
            exec(compile(FUNCTIONS, f"<owner {number}>", "exec"), names)
        if threaded:
            _in_a_thread(run)
        else:
            run()
        live = [counter.read()[0] for counter in counters]
        traced = [_traced(number) - before[number] for number in range(3)]
    finally:
        tracemalloc.stop()

    assert live == traced


def _traced(number: int) -> int:
    only = tracemalloc.Filter(True, f"<owner {number}>")
    blocks = tracemalloc.take_snapshot().filter_traces([only]).traces
    return sum(max(block.size, SMALLEST) + TRACE for block in blocks)
