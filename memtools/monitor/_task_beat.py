"""The beat as a task: look, act, sleep, on the loop that it was started on.

Covers: starting, being woken from any thread, its end, a loop that was closed without it.
Leaves to others: what a beat does (`Beaten`), pressure files (`_pressure`).
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from memtools.monitor._pressure import PressureWatch

_PAUSE_S: Final = 0.2  # after a signal of pressure: whoever writes to the FIFO may write without end


class BeatenOnLoop(Protocol):
    """What a beat drives."""

    async def beat_on_loop(self) -> float:
        """Look, act, and return the seconds until the next beat; never raises an `Exception`."""
        ...

    def feel(self, source: str) -> None:
        """Note that memory was said to be short."""
        ...


class TaskBeat:
    """A beat in a task of the running loop."""

    kind = "task"

    def __init__(self, name: str, driven: BeatenOnLoop, watch: Callable[[], PressureWatch | None]) -> None:
        import asyncio

        self._name = name
        self._driven = driven
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._open: PressureWatch | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> bool:
        """Start; return True."""
        self._task = self._loop.create_task(self._run(), name=f"memtools-{self._name}")
        return True

    @property
    def is_alive(self) -> bool:
        """Whether it still beats: its task may have been cancelled by others, its loop closed."""
        return self._task is not None and not self._task.done() and not self._loop.is_closed()

    def wake(self) -> None:
        """Have it look now; from any thread."""
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._woken.set)

    async def stop(self) -> None:
        """End it, and wait until it has ended."""
        import asyncio

        task = self._task
        if task is None or task.done() or task is asyncio.current_task():
            return
        if self._loop is not asyncio.get_running_loop():
            self.abandon()
            return
        task.cancel()
        await asyncio.wait({task})

    def abandon(self) -> None:
        """Have it end by itself, where its loop still runs."""
        task = self._task
        if task is not None and not task.done():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(task.cancel)

    def forget(self) -> None:
        """Close what a forked child has inherited of it; the loop is the parent's, and is not touched."""
        watch, self._open = self._open, None
        if watch is not None:
            watch.renew_lock()
            watch.close()

    async def _run(self) -> None:
        self._open = self._watch()
        self._listen()
        try:
            while True:
                seconds = await self._driven.beat_on_loop()
                await self._sleep(seconds)
        finally:
            self._close()

    async def _sleep(self, seconds: float) -> None:
        timer = self._loop.call_later(seconds, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()
        self._woken.clear()

    def _listen(self) -> None:
        self._resume = None
        if self._open is None:
            return
        try:
            self._loop.add_reader(self._open.fileno(), self._feel)
        except (NotImplementedError, OSError, ValueError):  # a loop without descriptors, or the file is closed
            self._open.close()
            self._open = None

    def _feel(self) -> None:
        watch = self._open
        if watch is None:
            return
        has_come = watch.wait(0)
        self._loop.remove_reader(watch.fileno())
        self._resume = self._loop.call_later(_PAUSE_S, self._listen)
        if has_come:
            self._driven.feel(watch.path)
            self._woken.set()

    def _close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        watch, self._open = self._open, None
        if watch is not None:
            with suppress(RuntimeError, OSError, ValueError, NotImplementedError):  # the loop is closed already
                self._loop.remove_reader(watch.fileno())
            watch.close()
