"""Investigate when asked, in a running service: `Investigator`.

Covers: a thread that waits to be asked, by a signal or by whoever sees memory run short; at most one answer in ten
minutes.
Leaves to others: the investigation (`_investigate`), noticing that memory is short (`memtools.monitor`, or the user).
"""

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

from memtools.leaks._diagnosis import Diagnosis
from memtools.leaks._investigate import investigate, parse_length
from memtools.units import parse_seconds

_log: Final = logging.getLogger("memtools.leaks")

# What `signal.signal` returned: a function, a number of its own kind, or None for a handler that C has set.
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


def log_diagnosis(diagnosis: Diagnosis) -> None:
    """Log one line per leak as a warning, or that there is none."""
    level = logging.WARNING if diagnosis.is_leak else logging.INFO
    for line in diagnosis.lines():
        _log.log(level, "%s", line)


class Investigator:
    """A thread that investigates when it is asked, from the beginning of a `with` block to its end.

    ```py
    with Investigator() as leaks:
        leaks.ask_on_signal(signal.SIGUSR1)
        await serve()
    ```

    Args:
        seconds: how long an investigation takes, at least 6.
        at_most_every_s: seconds from the beginning of one to that of the next; who asks earlier is not heard.
        tell: called in the thread with each answer; what it raises is logged.
        look: investigates for so many seconds; `wait` passes them, and is true when it has to end.
        clock: tells the time.

    Raises:
        ConfigError: for times that make no sense.

    Threads: `ask()` from any, and from a signal handler.
    """

    def __init__(
        self,
        *,
        seconds: float = 20.0,
        at_most_every_s: float = 600.0,
        tell: Callable[[Diagnosis], object] = log_diagnosis,
        look: Callable[..., Diagnosis] = investigate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = parse_length(seconds)
        self._gap_s = parse_seconds(at_most_every_s, name="at_most_every_s")
        self._tell = tell
        self._look = look
        self._clock = clock
        self._not_before = float("-inf")
        # The one queue whose `put` may interrupt itself: a signal handler runs in the middle of any line.
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._replaced: list[tuple[int, _Handler]] = []

    def __enter__(self) -> Self:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, name="memtools leaks", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._replaced:
            number, before = self._replaced.pop()
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, before)
        self._stopping.set()
        self._asked.put(False)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def ask(self, *_: object) -> None:
        """Ask for an investigation, and return at once; whatever it is called with is not looked at."""
        if self._asked.empty():
            self._asked.put(True)

    def ask_on_signal(self, number: int) -> None:
        """Ask whenever this signal comes; a handler that was set before is called as well, and comes back at the end.

        Args:
            number: `signal.SIGUSR1`, say.

        Raises:
            ValueError: outside of the main thread, as `signal.signal` does.
            OSError: for a signal that cannot be handled.
        """
        self._replaced.append((number, signal.signal(number, self._on_signal)))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.ask()
        before = next((handler for known, handler in self._replaced if known == number), None)
        if callable(before):
            before(number, frame)

    def _serve(self) -> None:
        while self._asked.get() and not self._stopping.is_set():
            if self._clock() < self._not_before:
                _log.info("asked for leaks again within %.0f s: not looked", self._gap_s)
                continue
            self._not_before = self._clock() + self._gap_s
            try:
                self._answer()
            except Exception:
                _log.exception("leaks could not be looked for, or told")

    def _answer(self) -> None:
        diagnosis = self._look(seconds=self._seconds, wait=self._stopping.wait)
        if not self._stopping.is_set():
            self._tell(diagnosis)
