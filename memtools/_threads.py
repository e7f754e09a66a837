"""Threads of memtools itself, and what the program's threads execute.

What a thread of memtools allocates is no owner's, and puts no owner's figure in doubt.

A file of its own because every part that starts a thread, or looks at one, needs it, from the lowest layer on.
"""

import contextvars
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class OwnThread(threading.Thread):
    """A thread that memtools starts for its own work, wherever the program first needs it: in a scope, or in a call."""

    def run(self) -> None:
        """Run the target in an empty context, as new threads had before they could inherit that of their starter."""
        disregard_thread()
        try:
            contextvars.Context().run(super().run)
        finally:
            self._release_for_gevent()

    def _release_for_gevent(self) -> None:
        # Before Python 3.13 `join` waits for a lock that gevent releases when a greenlet ends: in a class of its own,
        # which it puts in the place of `Thread`. A thread whose class was made before would be waited for in vain, as
        # under gunicorn, whose workers patch late.
        replaced: type = vars(threading)["Thread"]
        lock: Any = getattr(self, "_tstate_lock", None)
        if not isinstance(self, replaced) and type(lock).__module__ == "gevent.thread":
            lock.release()


def call_in_own_thread(function: Callable[[], object], *, name: str) -> "asyncio.Future[None]":
    """Call `function` in a daemon thread of its own; the future of the running loop is done when the call has ended.

    Not in the loop's pool, for the end of which `asyncio.run` would wait. The call goes on if the future is cancelled
    or the loop is closed meanwhile.

    Raises:
        RuntimeError: when no thread can be started, or no loop is running.
    """
    import asyncio  # on first need: programs without a loop do not load it

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def set_result(error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def call() -> None:
        error: BaseException | None = None
        try:
            function()
        except Exception as failure:
            error = failure
        try:
            loop.call_soon_threadsafe(set_result, error)
        except RuntimeError:  # the loop was closed meanwhile
            return

    OwnThread(target=call, name=name, daemon=True).start()
    return ended


def disregard_thread() -> None:
    """Tell the native ledger, where it counts, that the current thread works for no owner."""
    native: Any = sys.modules.get("memtools.ledger._native")  # absent where it was not built, or not needed so far
    if native is not None:
        native.disregard_thread()


def running_threads() -> set[int]:
    """Return the identities of all threads that run Python code; `threading` knows only those that it has started."""
    return set(sys._current_frames())  # pyright: ignore[reportPrivateUsage]  # documented


def frame_of_thread(thread: int) -> FrameType | None:
    """Return the frame that another thread executes; None if it executes none, and for the calling thread.

    A caller must not keep the frame: it would keep the variables of the function alive beyond its return, and what they
    hold would end in a thread that is not its own. And no function must keep the frames of all threads in a variable:
    its own frame would be among them, a cycle that keeps the variables of all threads alive until a collection.
    """
    if thread == threading.get_ident():
        return None
    return sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]  # documented
