"""What the ladder is made of: a step, and a step that can be interrupted.

Leaves to others: the steps of the house (`_trim`, `_collect`, `_trim_heap`), taking them (`_ladder`).
"""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from memtools.readings import Level


class Step(Protocol):
    """Something that gives memory back when it is called."""

    @property
    def name(self) -> str:
        """What it is called in events, logs and statistics."""
        ...

    @property
    def least(self) -> Level:
        """The lowest level at which it is taken."""
        ...

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Give memory back.

        Args:
            level: how short memory is.
            deadline: when to return, in seconds of `time.monotonic()`, done or not.

        Returns:
            The bytes that are known to have been given back.
        """
        ...


@runtime_checkable
class SlicedStep(Step, Protocol):
    """A step that lets others have their turn: the ladder walks its slices instead of calling it."""

    def slices(self, level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Give memory back in slices of a few milliseconds each.

        Args:
            level: how short memory is.
            left: returns the seconds that may still be spent; to be asked before each slice. The turns that others
                have between two slices do not count.

        Yields:
            The bytes that each slice is known to have given back. To yield nothing at all means that there was nothing
            to do, and the step counts as not taken.
        """
        ...


def known_bytes(answer: object) -> int:
    """Return what a step or a thing said it gave back, in bytes; 0 where it said what it never promised to."""
    return max(answer, 0) if isinstance(answer, int) else 0
