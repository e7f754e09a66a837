"""The moment at which a delivery has to be over, and a way to make it come sooner.

Leaves to others: sockets that obey it (`_wire`).

Threads: `cut` may be called from any thread; the rest belongs to the one that delivers.
"""

import time
from contextlib import suppress
from typing import Protocol


class Interruptible(Protocol):
    """A socket."""

    def shutdown(self, how: int, /) -> None:
        """End the conversation: whoever waits for the other side wakes up."""
        ...


class Deadline:
    """When to give up, by `time.monotonic()`.

    Args:
        seconds: how long from now.
    """

    __slots__ = ("_at", "_guarded")

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._guarded: list[Interruptible] = []

    @property
    def left_s(self) -> float:
        """Return the seconds that are left, 0 when it is over."""
        return max(0.0, self._at - time.monotonic())

    def require(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: when there are none.
        """
        left = self.left_s
        if not left:
            raise TimeoutError
        return left

    def guard(self, wire: Interruptible) -> None:
        """Have `wire` shut down by `cut`."""
        self._guarded.append(wire)

    def cut(self) -> None:
        """Make it over now: whoever waits at a guarded socket wakes up."""
        self._at = float("-inf")
        for wire in self._guarded.copy():
            with suppress(OSError):
                wire.shutdown(2)  # SHUT_RDWR; the number saves the import of `socket`
