"""The beat in a thread: look, act, wait; until it is told to stop.

Covers: starting, being woken, a system that gives no thread, no descriptor or no reading.
Leaves to others: what a beat does (`Beaten`), pressure files (`_pressure`).

The thread is a daemon: an interpreter that ends does not wait for it.
"""

import threading
from collections.abc import Callable
from typing import Final, Protocol

from memtools.monitor._pressure import PressureWatch

_PAUSE_S: Final = 0.2  # after a signal of pressure: whoever writes to the FIFO may write without end


class Beaten(Protocol):
    """What a beat drives."""

    def beat(self) -> float:
        """Look, act, and return the seconds until the next beat; never raises an `Exception`."""
        ...

    def feel(self, source: str) -> None:
        """Note that memory was said to be short."""
        ...


class ThreadBeat:
    """A beat in a daemon thread."""

    kind = "thread"

    def __init__(self, name: str, driven: Beaten, watch: Callable[[], PressureWatch | None]) -> None:
        self._driven = driven
        self._watch = watch
        self._woken = threading.Event()
        self._is_over = False
        self._open: PressureWatch | None = None
        self._thread = threading.Thread(target=self._run, name=f"memtools-{name}", daemon=True)

    def start(self) -> bool:
        """Start; return False where no thread can be had."""
        try:
            self._thread.start()
        except (RuntimeError, MemoryError):  # no memory for a stack, too many threads, the interpreter is ending
            return False
        return True

    @property
    def is_alive(self) -> bool:
        """Whether it still beats."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Have it look now."""
        self._woken.set()
        watch = self._open
        if watch is not None:
            watch.ring()

    def stop(self) -> None:
        """End it, and wait until it has ended, unless it is the one that asks."""
        self.abandon()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def abandon(self) -> None:
        """Have it end by itself."""
        self._is_over = True
        self.wake()

    def forget(self) -> None:
        """Close what a forked child has inherited of it; the thread stayed in the parent."""
        watch, self._open = self._open, None
        if watch is not None:
            watch.renew_lock()
            watch.close()

    def _run(self) -> None:
        self._open = watch = self._watch()
        try:
            while not self._is_over:
                self._wait(watch, self._driven.beat())
        finally:
            self._open = None
            if watch is not None:
                watch.close()

    def _wait(self, watch: PressureWatch | None, seconds: float) -> None:
        # Whoever wakes sets the event first and rings then; who waits looks at the event first.
        if watch is None or self._woken.is_set():
            self._woken.wait(seconds)
        elif watch.wait(seconds):
            self._driven.feel(watch.path)
            self._woken.wait(_PAUSE_S)
        self._woken.clear()
