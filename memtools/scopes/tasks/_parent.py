"""Interrupt the task that holds the `async with`, and leave its count of cancellations as it was.

A task of the scope fails while the block is at work: the block is interrupted by cancelling its task. That is our own
cancellation and must not be seen outside; one that came from outside, at whatever moment, must be. The rules are those
of `asyncio.TaskGroup` since gh-116720 (Python 3.13), on every Python.
"""

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

# Since 3.13 `uncancel` takes back a cancellation that has not been delivered yet.
_UNCANCEL_TAKES_BACK: Final = sys.version_info >= (3, 13)


class ParentTask:
    """The task that holds the block.

    Attributes:
        task: the task itself.
        is_interrupted: whether we have cancelled it and not yet taken that back.
    """

    __slots__ = ("is_interrupted", "task")

    def __init__(self, task: "asyncio.Task[Any]") -> None:  # Any: what it returns is its own business
        self.task = task
        self.is_interrupted = False

    def interrupt(self) -> None:
        """Cancel the block, to be taken back by `settle`."""
        self.is_interrupted = True
        self.task.cancel()

    async def settle(self) -> bool:
        """Take our cancellation back; return whether no other one is left."""
        if not self.is_interrupted:
            return False
        await self._receive_pending()
        self.is_interrupted = False
        return self.task.uncancel() == 0

    def renew_outer_cancellation(self) -> None:
        """Have a cancellation from outside delivered again: an exception of ours is about to hide it."""
        if self.task.cancelling():
            self.task.uncancel()
            self.task.cancel()

    async def _receive_pending(self) -> None:
        if _UNCANCEL_TAKES_BACK or not getattr(self.task, "_must_cancel", False):
            return
        import asyncio

        # An eager task failed while the block was running, and nothing was awaited since: without this the
        # cancellation would hit whatever is awaited after the scope. How many there were is told by the count.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return
