"""The arithmetic over the tree of owners, compared with a model that charges every ancestor with every segment."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memtools.ledger._counters import Counter, aggregate_eagerly, attach, charge, detach, totals


@dataclass
class Expected:
    """What a counter should hold: each segment is added to it and to all its ancestors, at once."""

    above: "Expected | None"
    live: int = 0
    peak: int = 0

    def charge(self, net: int, rise: int) -> None:
        charged: Expected | None = self
        while charged is not None:
            charged.peak = max(charged.peak, charged.live + rise)
            charged.live += net
            charged = charged.above


@dataclass
class Strand:
    """One task or thread: owners that were opened inside each other, innermost last."""

    owners: list[tuple[Counter, Expected]] = field(default_factory=list)


class AnyTreeOfOwners(RuleBasedStateMachine):
    """Tasks that open, allocate, start other tasks and end, in any order, ends out of order included."""

    def __init__(self) -> None:
        super().__init__()
        self.strands = [Strand([(Counter(), Expected(None))])]
        self.open = list(self.strands[0].owners)

    @rule(where=st.integers(0), net=st.integers(-50, 80), above=st.integers(0, 30))
    def allocate_and_free(self, where: int, net: int, above: int) -> None:
        counter, truth = self._strand(where).owners[-1]
        charge(counter, net, max(net, 0) + above)
        truth.charge(net, max(net, 0) + above)

    @rule(where=st.integers(0))
    def open_inside(self, where: int) -> None:
        strand = self._strand(where)
        above, truth = strand.owners[-1]
        self._open(strand, above, truth, in_line=True)

    @rule(where=st.integers(0), depth=st.integers(0))
    def start_a_task_below(self, where: int, depth: int) -> None:
        owners = self._strand(where).owners
        above, truth = owners[depth % len(owners)]
        strand = Strand()
        self._open(strand, above, truth, in_line=False)
        self.strands.append(strand)

    @rule(where=st.integers(0))
    def share_in_the_middle(self, where: int) -> None:
        aggregate_eagerly(self._strand(where).owners[0][0])

    @precondition(lambda self: len(self.open) > 1)
    @rule(where=st.integers(0))
    def end_the_innermost(self, where: int) -> None:
        strand = self._strand(where)
        self._end(strand, len(strand.owners) - 1)

    @precondition(lambda self: len(self.open) > 1)
    @rule(where=st.integers(0), depth=st.integers(0))
    def end_out_of_order(self, where: int, depth: int) -> None:
        strand = self._strand(where)
        self._end(strand, depth % len(strand.owners))

    @invariant()
    def everyone_knows_its_own_and_its_childrens_bytes(self) -> None:
        told = [totals(counter) for counter, _ in self.open]

        assert told == [(truth.live, truth.peak) for _, truth in self.open]

    def _strand(self, where: int) -> Strand:
        return self.strands[where % len(self.strands)]

    def _open(self, strand: Strand, above: Counter, truth: Expected, *, in_line: bool) -> None:
        made = (Counter(), Expected(truth))
        attach(made[0], above, inline=in_line)
        strand.owners.append(made)
        self.open.append(made)

    def _end(self, strand: Strand, depth: int) -> None:
        counter, truth = ended = strand.owners.pop(depth)
        detach(counter)
        assert (counter.live, counter.peak) == (truth.live, truth.peak)
        self.open.remove(ended)
        if not strand.owners:
            self.strands.remove(strand)


AnyTreeOfOwners.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestAnyTreeOfOwners = AnyTreeOfOwners.TestCase


def test_segment_of_nested_owners_costs_one_addition() -> None:
    outermost = innermost = Counter()
    for _ in range(30):
        child = Counter()
        attach(child, innermost, inline=True)
        innermost = child

    charge(innermost, 10.0, 10.0)

    assert innermost.eager_parent is None
    assert (outermost.live, totals(outermost)) == (0.0, (10.0, 10.0))


def test_peak_of_a_child_adds_to_the_bytes_of_its_parent() -> None:
    parent, child = Counter(), Counter()
    charge(parent, 50.0, 50.0)
    attach(child, parent, inline=True)
    charge(child, 0.0, 5.0)

    detach(child)
    charge(parent, -50.0, 0.0)

    assert (parent.live, parent.peak) == (0.0, 55.0)


def test_concurrent_children_have_one_common_peak() -> None:
    parent, first, second = Counter(), Counter(), Counter()
    attach(first, parent, inline=False)
    attach(second, parent, inline=False)
    charge(first, 50.0, 50.0)
    charge(second, 5.0, 5.0)
    charge(first, -50.0, 0.0)

    detach(first)
    detach(second)

    assert (first.peak, second.peak, parent.peak, parent.live) == (50.0, 5.0, 55.0, 5.0)


def test_counter_detached_twice_counts_once() -> None:
    parent, child = Counter(), Counter()
    attach(child, parent, inline=True)
    charge(child, 7.0, 7.0)

    detach(child)
    detach(child)

    assert parent.live == 7.0


def test_owner_below_a_chain_of_closed_ones_does_not_keep_them() -> None:
    link = Counter()
    for _ in range(100):
        successor = Counter()
        attach(successor, link, inline=False)
        detach(link)
        link = successor
    last = Counter()

    attach(last, link, inline=False)

    above, length = last.eager_parent, 0
    while above is not None:
        above, length = above.eager_parent, length + 1
    assert length <= 1
