"""Figures of counters in any tree, the cost of deep ones, and the reuse of the numbers of closed counters."""

import contextlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from memtools.ledger import choose_meter, native_reason
from memtools.scopes import memory_scope

if native_reason():
    pytest.skip(f"no native ledger: {native_reason()}", allow_module_level=True)

from memtools.ledger import _native

NATIVE = Path(__file__).parents[2] / "memtools" / "ledger" / "native"
MOST = 32_766  # numbers
BYTE = b"x"
SIZES = (2, 200, 70_000)  # of each way in which the block map stores a block


class Program:
    """Owners that allocate, close, are dropped or kept, with a model of what each should hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.accounts = [_native.AccountTotals() for _ in range(5)]
        self.account_bytes = [0] * 5
        self.held: list[tuple[_native.Counter, list[int]]] = []  # with the bytes of each and its children
        self.blocks: list[tuple[bytes, int, int, list[list[int]]]] = []

    def open(self) -> None:
        parent = self.random.choice(self.held) if self.held and self.random.random() < 0.5 else None
        account = self.random.randrange(5)
        counter = _native.Counter(parent[0] if parent else None)
        counter.attach_account(self.accounts[account])
        own = [0]
        self.make(counter, account, [own] if parent is None else [own, parent[1]])
        if parent is None and self.random.random() < 0.001:
            self.held.append((counter, own))
        else:
            counter.close()

    def make(self, counter: _native.Counter, account: int, above: list[list[int]]) -> None:
        size = self.random.choices(SIZES, (100, 10, 1))[0]
        _native.switch(counter)
        block = BYTE * size  # no call: its argument tuple would be another block
        _native.switch(None)
        counted = block.__sizeof__()
        for total in above:
            total[0] += counted
        self.account_bytes[account] += counted
        self.blocks.append((block, counted, account, above))

    def drop(self) -> None:
        _, counted, account, above = self.blocks.pop(self.random.randrange(len(self.blocks)))
        for total in above:
            total[0] -= counted
        self.account_bytes[account] -= counted

    def check(self) -> None:
        assert [account.live_bytes() for account in self.accounts] == self.account_bytes
        for counter, own in self.held:
            assert counter.read()[0] == own[0]


@pytest.mark.parametrize("seed", range(3))
def test_released_numbers_are_merged_and_figures_stay_right(seed: int) -> None:
    meter = choose_meter("native")
    meter.acquire()
    try:
        before = _native.counters_in_use()
        warm_up = Program(seed)
        for _ in range(1000):
            warm_up.open()
        del warm_up
        program = Program(seed)
        for number in range(int(MOST * 1.5)):
            program.open()
            if program.random.random() < 0.2:
                program.drop()
            if number % 8000 == 0:
                program.check()
        program.check()

        late = _native.Counter()
        assert not late.is_shared
        assert _native.counters_in_use() < MOST
        while program.blocks:
            program.drop()
        program.check()
        del late
        held = len(program.held)
        assert _native.counters_in_use() - before <= held + 5
    finally:
        meter.release()


def test_owner_shares_a_number_when_all_are_held() -> None:
    meter = choose_meter("native")
    meter.acquire()
    try:
        crowd = [_native.Counter() for _ in range(MOST + 10)]
        assert crowd[-1].is_shared
        del crowd
        assert not _native.Counter().is_shared
    finally:
        meter.release()


class Node:
    """A counter with its own model: each allocation is added to it and to all above it at once."""

    def __init__(self, above: "Node | None") -> None:
        self.counter: _native.Counter = _native.Counter(None if above is None else above.counter)
        self.above = above
        self.figures = [0, 0, 0]  # live, peak, allocated
        self.is_open = True

    def change(self, size: int) -> None:
        figures = self.figures
        figures[0] += size
        figures[1] = max(figures[1], figures[0])
        figures[2] += max(size, 0)
        if self.above is not None:
            self.above.change(size)

    def expected(self) -> tuple[int, ...]:
        return tuple(self.figures)


class AnyTreeOfCounters(RuleBasedStateMachine):
    """Counters in a tree of any shape that allocate, free, are read, limited and closed in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = choose_meter("native")
        self.meter.acquire()
        self.nodes = [Node(None), Node(None)]
        self.blocks: list[tuple[bytes, Node]] = []
        for _ in range(20):  # the interpreter specialises the code, and allocates for it
            self._allocate(Node(None), 2)
            self.free(0, 0)

    def _open_node(self, where: int) -> Node:
        still_open = [node for node in self.nodes if node.is_open]
        return still_open[where % len(still_open)]

    @rule(where=st.integers(0))
    def open_below(self, where: int) -> None:
        self.nodes.append(Node(self._open_node(where)))

    @rule(where=st.integers(0), depth=st.integers(1, 20), size=st.integers(2, 3000))
    def open_chain_below(self, where: int, depth: int, size: int) -> None:
        node = self._open_node(where)
        for _ in range(depth):
            node = Node(node)
            self.nodes.append(node)
        self._allocate(node, size)

    @rule(where=st.integers(0), size=st.integers(2, 3000))
    def allocate(self, where: int, size: int) -> None:
        self._allocate(self._open_node(where), size)

    def _allocate(self, node: Node, size: int) -> None:
        _native.switch(node.counter)
        block = BYTE * size
        _native.switch(None)
        node.change(block.__sizeof__())
        self.blocks.append((block, node))

    @precondition(lambda self: self.blocks)
    @rule(which=st.integers(0), where=st.none() | st.integers(0))
    def free(self, which: int, where: int | None) -> None:
        block, node = self.blocks.pop(which % len(self.blocks))
        node.change(-block.__sizeof__())
        charged = None if where is None else self._open_node(where).counter
        _native.switch(charged)
        del block
        _native.switch(None)

    @rule(where=st.integers(0), size=st.integers(2, 3000), which=st.integers(0))
    def allocate_and_free_in_one_step(self, where: int, size: int, which: int) -> None:
        node = self._open_node(where)
        old, owner = self.blocks.pop(which % len(self.blocks)) if self.blocks else (None, node)
        freed = 0 if old is None else old.__sizeof__()
        _native.switch(node.counter)
        block = BYTE * size
        del old
        _native.switch(None)
        node.change(block.__sizeof__())
        owner.change(-freed)
        self.blocks.append((block, node))

    @rule(where=st.integers(0))
    def read(self, where: int) -> None:
        node = self.nodes[where % len(self.nodes)]
        assert node.counter.read() == node.expected()

    @rule(where=st.integers(0), limit=st.integers(2**40, 2**41))
    def set_limit(self, where: int, limit: int) -> None:
        self._open_node(where).counter.set_limit(limit, False, print)

    @precondition(lambda self: sum(node.is_open for node in self.nodes) > 2)
    @rule(where=st.integers(0))
    def close(self, where: int) -> None:
        closed = self._open_node(where)
        closed.counter.close()
        closed.is_open = False
        for node in self.nodes:
            if node.is_open and node.above is closed:
                node.above = closed.above  # takes its bytes along
                closed.figures[0] -= node.figures[0]

    def teardown(self) -> None:
        for node in self.nodes:
            assert node.counter.read() == node.expected()
        self.blocks.clear()
        self.nodes.clear()
        self.meter.release()


TestAnyTreeOfCounters = AnyTreeOfCounters.TestCase
# Without `explain`: it traces every line, and its records would be charged.
TestAnyTreeOfCounters.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)


def fold_count_of_nesting(depth: int, names: int) -> int:
    """Return how many steps up the tree it takes to open scopes inside each other and to close them."""
    before = _native.count_folds()
    with contextlib.ExitStack() as stack:
        for level in range(depth):
            stack.enter_context(memory_scope(f"level {level % names}", meter="native"))
    return _native.count_folds() - before


@pytest.mark.parametrize("names", [1, 3, 300])
def test_cost_of_nesting_grows_in_proportion_to_depth(names: int) -> None:
    fold_count_of_nesting(300, names)  # what is made once

    shallow, deep = fold_count_of_nesting(300, names), fold_count_of_nesting(3_000, names)

    assert 1_000 < deep < 20 * shallow


@pytest.mark.once
@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler for the program")
@pytest.mark.skipif(not (NATIVE / "block_map.c").exists(), reason="the C sources are not beside the tests")
def test_parts_without_an_interpreter_pass_their_own_check(tmp_path: Path) -> None:
    program = tmp_path / "check"
    check = Path(__file__).with_name("programs") / "native_self_check.c"
    sources = [check, *(NATIVE / name for name in ("black_box.c", "block_map.c", "counters.c"))]
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread"]
    subprocess.run(["cc", *flags, *map(str, sources), "-o", str(program)], check=True, timeout=120)

    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)

    assert done.stdout == "checked\n"
