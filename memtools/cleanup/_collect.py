"""Have the garbage collector look for circles: a little, or everywhere when that can be afforded.

Covers: the price of a full collection, measured and foretold.
Leaves to others: what may be spent (`_ladder`), what becomes of the pages (`_trim_heap`).

A full collection cannot be interrupted, stalls every thread, and takes 140 ms per million containers (measured on
CPython 3.11, lists of ints). So it is taken only when the share of wall time allows for all of it.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator

from memtools.cleanup._pause import collect_measured
from memtools.readings import Level, resident_bytes

# Half of the 140 ns per container: of all blocks, about every other is a container (a dict with its keys and values).
_FIRST_GUESS_S = 70e-9


class CollectYoung:
    """The step that collects the young generations: 0 at `NORMAL`, 0 and 1 above.

    Args:
        read: returns what is in use, in bytes; what it falls by is taken for given back.
    """

    name: str = "collect young"
    least: Level = Level.NORMAL

    __slots__ = ("_read",)

    def __init__(self, *, read: Callable[[], int] = resident_bytes) -> None:
        self._read = read

    def __call__(self, level: Level, _deadline: float, /) -> int:
        """Collect; return by how many bytes usage fell. It is over in a millisecond or two."""
        before = self._read()
        gc.collect(0 if level < Level.WARNING else 1)
        return max(before - self._read(), 0)


class CollectAll:
    """The step that collects all generations, when there is time enough for it.

    Its price is foretold from the last one: pause by number of allocated blocks.

    Args:
        read: returns what is in use, in bytes; what it falls by is taken for given back.
        clock: monotonic seconds.
        count: returns how many blocks are allocated.
        collect: collects everything and returns the pause in seconds, or None where another thread was at it already.
    """

    name: str = "collect all"
    least: Level = Level.WARNING

    __slots__ = ("_clock", "_collect", "_count", "_price_s", "_read")

    def __init__(
        self,
        *,
        read: Callable[[], int] = resident_bytes,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[], int] = sys.getallocatedblocks,
        collect: Callable[[], float | None] = collect_measured,
    ) -> None:
        self._read = read
        self._clock = clock
        self._count = count
        self._collect = collect
        self._price_s = _FIRST_GUESS_S

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Collect, if that can be done by `deadline`; return by how many bytes usage fell."""
        return sum(self.slices(level, lambda: deadline - self._clock()))

    def slices(self, _level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Collect in one slice, or in none where there is too little time; see `SlicedStep`."""
        blocks = self._count()
        if blocks * self._price_s > left():
            return

        before = self._read()
        pause_s = self._collect()
        if pause_s is None:
            return
        self._price_s = pause_s / max(blocks, 1)
        yield max(before - self._read(), 0)
