"""Last words: what a process says of itself while its memory runs short, before it may be killed.

At the first level a census of the heap is taken, at the next one a second: what has grown between the two says more
than what is largest. A census needs some memory itself, and is left out where too little is left for it.
"""

import sys
import threading
import time
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Final

from memtools._text import printable
from memtools.heap import Census, growth_between, heap_census
from memtools.readings import Reading
from memtools.units import format_size

_MAX_THREADS: Final = 50
_MAX_FRAMES: Final = 12
_MAX_OWNERS: Final = 10
_MAX_LARGEST: Final = 5
_POINTER_BYTES: Final = 8  # of the list of all objects that a census makes
_LEAST_FREE_BYTES: Final = 4 << 20
_MAX_CENSUS_BLOCKS: Final = 20_000_000  # a longer census would hold up the program for more than a second or two


class LastWords:
    """The words of one rise from the normal level: a short text at once, and a longer one after the census."""

    def __init__(self) -> None:
        self._census: Census | None = None

    def reset(self) -> None:
        """Forget the census: the level is normal again."""
        self._census = None

    def short(self, level: str, reading: Reading, owners: Sequence[tuple[str, int]]) -> str:
        """Return what is known at once: the figure, the owners, the stacks of all threads."""
        at = time.strftime("%H:%M:%S")
        lines = [f"at {at}, {level}: {reading}"]
        if owners:
            held = ", ".join(f"{printable(name, 200)} {format_size(size)}" for name, size in owners[:_MAX_OWNERS])
            lines.append(f"largest owners: {held}")
        return "\n".join([*lines, *stack_lines(_frames(), _thread_names())])

    def heap(self, reading: Reading) -> str:
        """Return what has grown in the heap since the first census of this rise, or what is largest; may be empty."""
        if not may_count_heap(reading):
            return "heap: not counted, too little memory is left for it"
        counted = heap_census()
        before, self._census = self._census, counted
        if before is None:
            return f"heap: {counted.objects:,} objects; largest containers: {_largest(counted)}"
        grown = [str(growth) for growth in growth_between(before, counted, limit=_MAX_LARGEST)]
        return f"heap: growing since the first warning: {', '.join(grown) or 'nothing by itself'}"


def may_count_heap(reading: Reading) -> bool:
    """Return whether there is room for a census below the limit.

    A list of all objects is made for it; there are no more of these than blocks of Python's small-object allocator.
    """
    blocks = sys.getallocatedblocks()
    if blocks > _MAX_CENSUS_BLOCKS:
        return False
    if reading.limit_bytes is None:
        return True
    return reading.limit_bytes - reading.used_bytes > blocks * _POINTER_BYTES + _LEAST_FREE_BYTES


def stack_lines(frames: "dict[int, FrameType]", names: "dict[int, str]") -> list[str]:
    """Return a line for each thread, the innermost call first; no code of the program is called for it.

    Args:
        frames: the innermost frame of each thread, by its number.
        names: the names of the threads.
    """
    lines: list[str] = []
    for thread, frame in list(frames.items())[:_MAX_THREADS]:
        calls: list[str] = []
        found: FrameType | None = frame
        while found is not None and len(calls) < _MAX_FRAMES:
            code = found.f_code
            if not code.co_filename.startswith(_OWN_FOLDER):
                calls.append(f"{code.co_qualname} ({code.co_filename}:{found.f_lineno})")
            found = found.f_back
        if calls:
            lines.append(f"thread {printable(names.get(thread, str(thread)), 60)}: " + " <- ".join(calls))
    return lines


_OWN_FOLDER: Final = __file__.rpartition("black_box")[0]


def _frames() -> dict[int, FrameType]:
    return sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # documented, in spite of its name


def _thread_names() -> dict[int, str]:
    # Not `threading.enumerate`, whose lock a thread may hold that waits for memory.
    active: dict[int, threading.Thread] = dict(getattr(threading, "_active", {}))
    return {ident: thread.name for ident, thread in active.items()}


def _largest(counted: Census) -> str:
    longest: Iterable[tuple[int, int]] = sorted(counted.containers.values(), key=lambda found: found[1], reverse=True)
    return ", ".join(f"{counted.names[kind]} of {length:,}" for kind, length in list(longest)[:_MAX_LARGEST])
