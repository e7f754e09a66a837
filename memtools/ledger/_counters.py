"""Add up what owners hold, so that every owner knows its own and its children's live bytes and highest live bytes.

Covers: the arithmetic over the tree of owners. Leaves to others: whose turn it is (`_current`), where the bytes come
from (the meters). No clock, no allocator, no lock: the caller holds one.

Time is cut into segments, and each segment is charged to one owner: how many bytes it added (`net`) and how far above
its start the total rose in between (`rise`). An owner's figures include its children's. Two ways lead there:

- *in line*: while the only open child of an owner has the turn, the owner itself stands still. Nothing is done until
  the child ends, then `peak = max(peak, live + child.peak)` and `live += child.live`. However deep the nesting, a
  segment costs one addition.
- *shared*: an owner with several open children (tasks, threads) must be charged with each segment of each of them, or
  their simultaneous peak is lost. Each open owner knows by `up` the nearest shared one above.

Figures are floats: exact below 2**53 bytes, and CPython serves floats from a free list, so that the book-keeping does
not show up in what is measured (an int would be a new block of its own, at 250 ns under tracemalloc).
"""


class Tally:
    """What one owner holds, and its place in the tree.

    Attributes:
        live: bytes that this owner, and the children counted so far, added and did not give back.
        peak: the highest `live` so far, children included.
        shared: whether segments of its children are charged to it at once.
        up: the nearest shared tally above, which is charged with every segment of this one.
        payer: the tally that takes over these figures in the end.
        child: the one child in line, while this tally is not shared.
        children: how many are attached now.
        detached: set by `detach`.
    """

    __slots__ = ("child", "children", "detached", "live", "payer", "peak", "shared", "up")

    def __init__(self) -> None:
        self.live: float = 0.0
        self.peak: float = 0.0
        self.shared: bool = False
        self.up: Tally | None = None
        self.payer: Tally | None = None
        self.child: Tally | None = None
        self.children: int = 0
        self.detached: bool = False


def attach(tally: Tally, payer: Tally | None, *, in_line: bool) -> None:
    """Hang a new tally below `payer`; `in_line` when nobody but this child has the turn until it ends."""
    if payer is None:
        return

    _forget_detached(payer)
    if not in_line or payer.child is not None:
        share(payer)
    payer.children += 1
    tally.payer = payer
    tally.up = payer if payer.shared else payer.up
    if not payer.shared:
        payer.child = tally


def detach(tally: Tally) -> None:
    """Take a tally out of the tree and hand its figures to its payer; a second call does nothing."""
    if tally.detached:
        return
    if tally.children:
        # It ends before its children do: from now on their segments go straight to everyone above.
        _share_all(tally)

    tally.detached = True
    payer = tally.payer
    if payer is None:
        return
    payer.children -= 1
    if payer.shared:
        return
    payer.peak = max(payer.peak, payer.live + tally.peak)
    payer.live += tally.live
    payer.child = None


def charge(tally: Tally | None, net: float, rise: float) -> None:
    """Charge one segment to `tally`, which has no open child in line, and to all who share in it."""
    while tally is not None:
        live = tally.live
        high = live + rise
        if high > tally.peak:
            tally.peak = high
        tally.live = live + net
        tally = tally.up


def share(tally: Tally) -> None:
    """Have `tally` charged with each segment of its children from now on."""
    if tally.shared:
        return

    tally.live, tally.peak = inclusive(tally)
    for below in _line(tally):
        below.up = tally
    tally.shared = True
    tally.child = None


def inclusive(tally: Tally) -> tuple[float, float]:
    """Return live and peak bytes with the open children in line counted in."""
    live, peak = 0.0, 0.0
    for below in reversed([tally, *_line(tally)]):
        peak = max(below.peak, below.live + peak)
        live += below.live
    return live, peak


def _forget_detached(tally: Tally) -> None:
    # A task that starts its successor and ends, for ever: without this each would keep all that came before.
    while tally.up is not None and tally.up.detached:
        tally.up = tally.up.up
    while tally.payer is not None and tally.payer.detached:
        tally.payer = tally.payer.payer
        if tally.payer is not None:
            tally.payer.children += 1


def _line(tally: Tally) -> list[Tally]:
    # Ends with the first shared one: its figures hold everything below.
    line: list[Tally] = []
    below = tally.child
    while below is not None:
        line.append(below)
        below = below.child
    return line


def _share_all(tally: Tally) -> None:
    chain: Tally | None = tally
    while chain is not None:
        share(chain)
        chain = chain.payer
