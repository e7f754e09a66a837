"""The arithmetic of owners: live and peak bytes of each owner, with those of its children.

Time is cut into segments, and each segment is charged to one owner: how many bytes it added (`net`) and how far above
its start the total rose in between (`rise`). An owner's figures include its children's. There are two ways:

- *inline*: an owner with one open child does not change while the child runs. Nothing is added up before the child
  ends; then `peak = max(peak, live + child.peak)` and `live += child.live`. A segment costs one addition, however deep
  the nesting.
- *eager*: an owner with several open children (tasks, threads) is charged with each segment of each of them, because
  the peak that they reach together would be lost otherwise. Each open counter has in `eager_parent` its nearest eager
  ancestor.

Figures are floats: exact below 2**53 bytes, and CPython takes floats from a free list, so that counting does not show
up in what is measured (an int would be a new block, at 250 ns under tracemalloc).

No clock, no allocator and no lock: the caller holds one.
"""


class Counter:
    """What one owner holds, and its place in the tree.

    Attributes:
        live: bytes that this owner, and the children added up so far, have allocated and not freed.
        peak: the highest `live` so far, children included.
        is_eager: whether segments of its children are charged to it at once.
        eager_parent: the nearest eager ancestor, which is charged with every segment of this one.
        charging_parent: the counter that takes over these figures at the end.
        inline_child: the one open child, while this counter is not eager.
        open_children: how many children are attached.
        detached: set by `detach`.
    """

    __slots__ = (
        "charging_parent", "detached", "eager_parent", "inline_child", "is_eager", "live", "open_children", "peak",
    )  # fmt: skip

    def __init__(self) -> None:
        self.live: float = 0.0
        self.peak: float = 0.0
        self.is_eager: bool = False
        self.eager_parent: Counter | None = None
        self.charging_parent: Counter | None = None
        self.inline_child: Counter | None = None
        self.open_children: int = 0
        self.detached: bool = False


def attach(counter: Counter, parent: Counter | None, *, inline: bool) -> None:
    """Attach a new counter to `parent`; `inline` when only this child is charged until it ends."""
    if parent is None:
        return

    _skip_detached(parent)
    if not inline or parent.inline_child is not None:
        aggregate_eagerly(parent)
    parent.open_children += 1
    counter.charging_parent = parent
    counter.eager_parent = parent if parent.is_eager else parent.eager_parent
    if not parent.is_eager:
        parent.inline_child = counter


def detach(counter: Counter) -> None:
    """Take a counter out of the tree and add its figures to its parent; a second call does nothing."""
    if counter.detached:
        return
    if counter.open_children:
        # It ends before its children: from now on their segments are charged to every ancestor directly.
        _aggregate_ancestors(counter)

    counter.detached = True
    parent = counter.charging_parent
    if parent is None:
        return
    parent.open_children -= 1
    if parent.is_eager:
        return
    parent.peak = max(parent.peak, parent.live + counter.peak)
    parent.live += counter.live
    parent.inline_child = None


def charge(counter: Counter | None, net: float, rise: float) -> None:
    """Charge one segment to `counter`, which has no open inline child, and to its eager ancestors."""
    while counter is not None:
        live = counter.live
        high = live + rise
        if high > counter.peak:
            counter.peak = high
        counter.live = live + net
        counter = counter.eager_parent


def aggregate_eagerly(counter: Counter) -> None:
    """Charge `counter` with each segment of its children from now on."""
    if counter.is_eager:
        return

    counter.live, counter.peak = totals(counter)
    for descendant in _inline_descendants(counter):
        descendant.eager_parent = counter
    counter.is_eager = True
    counter.inline_child = None


def totals(counter: Counter) -> tuple[float, float]:
    """Return live and peak bytes with the open inline children added."""
    live, peak = 0.0, 0.0
    for descendant in reversed([counter, *_inline_descendants(counter)]):
        peak = max(descendant.peak, descendant.live + peak)
        live += descendant.live
    return live, peak


def _skip_detached(counter: Counter) -> None:
    # In an endless chain of tasks, each of which starts the next one and ends, each would keep all earlier ones.
    while counter.eager_parent is not None and counter.eager_parent.detached:
        counter.eager_parent = counter.eager_parent.eager_parent
    while counter.charging_parent is not None and counter.charging_parent.detached:
        counter.charging_parent = counter.charging_parent.charging_parent
        if counter.charging_parent is not None:
            counter.charging_parent.open_children += 1


def _inline_descendants(counter: Counter) -> list[Counter]:
    # Ends with the first eager one: its figures include everything below.
    found: list[Counter] = []
    child = counter.inline_child
    while child is not None:
        found.append(child)
        child = child.inline_child
    return found


def _aggregate_ancestors(counter: Counter) -> None:
    ancestor: Counter | None = counter
    while ancestor is not None:
        aggregate_eagerly(ancestor)
        ancestor = ancestor.charging_parent
