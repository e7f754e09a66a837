"""Look for leaks for a while: `investigate`, in a thread, and `investigate_async`, on the loop.

Covers: when samples and counts are taken.
Leaves to others: taking them (`_investigation`).
"""

import _thread
import asyncio
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Final, Self

from memtools.errors import ConfigError
from memtools.leaks._diagnosis import Diagnosis
from memtools.leaks._investigation import Investigation, jittered_intervals
from memtools.units import parse_seconds

# Look on while a program runs, however long that is: `Alongside`, for `python -m memtools run --leaks`.
#
# Covers: a thread that samples, counts and climbs at growing distances, so that there is an answer whenever it ends.
# Leaves to others: the steps themselves (`_investigation`).
#
# The thread is one that `threading` does not know of: the program's own counts and lists of threads stay as they are, and
# its end does not wait for it.

_SAMPLE_S: Final = 0.1  # programs may be short
_FIRST_COUNT_S: Final = 1.0
_LONGEST_GAP_S: Final = 10.0
_CPU_SHARE: Final = 0.05  # of a processor, for counting and climbing
_YIELD_S: Final = 0.001


class BackgroundInvestigation:
    """An investigation beside a program, from `start()` to `finish()`.

    Args:
        clock: tells the time.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._investigation = Investigation()
        self._begun = clock()
        self._ended_at: float | None = None
        self._stopped = False
        self._failure = ""
        self._done = _thread.allocate_lock()

    def start(self) -> None:
        """Begin to look on, in a thread of its own."""
        self._begun = self._clock()
        self._done.acquire()
        _thread.start_new_thread(self._run, ())

    def note_end(self) -> None:
        """Remember that the program's own code has ended, and is now giving back what it had."""
        self._ended_at = self._clock()

    def finish(self, *, timeout: float = 5.0) -> Diagnosis:
        """Stop looking on, and return what was found.

        Args:
            patience_s: how long to wait for a walk over the heap that goes on.

        Raises:
            RuntimeError: when looking on has failed.
        """
        self._stopped = True
        # Where a walk takes longer on a busy machine, what was found before is told; the thread dies with the process.
        self._done.acquire(timeout=timeout)
        if self._failure:
            raise RuntimeError(self._failure)
        ended = self._ended_at if self._ended_at is not None else self._clock()
        return self._investigation.diagnosis(until=ended, is_ending=True)

    def _run(self) -> None:
        try:
            for pause_s in self._steps():
                if self._stopped:
                    return
                time.sleep(pause_s)
        except Exception as error:  # the program shall not see it
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._done.release()

    def _steps(self) -> Iterator[float]:
        gaps = jittered_intervals(_SAMPLE_S)
        sample_at = self._begun
        for pause_s in self._heap_passes():
            # In the middle of a look as well: on a busy machine it takes seconds.
            now = self._clock()
            if now >= sample_at:
                self._investigation.sample()
                sample_at = now + next(gaps)
            yield pause_s if pause_s else max(sample_at - now, _YIELD_S)

    def _heap_passes(self) -> Iterator[float]:
        count_at = self._begun + _FIRST_COUNT_S
        while True:
            yield 0.0  # until the next sample
            now = self._clock()
            if now < count_at or self._ended_at is not None:
                continue
            # The thread's own time: on a busy machine most of the wall's is waiting, which harms nobody.
            used = time.thread_time()
            for _ in self._investigation.count():
                yield _YIELD_S
            for _ in self._investigation.climb():
                yield _YIELD_S
            used = time.thread_time() - used
            count_at = now + max(1.0, min(_LONGEST_GAP_S, 0.5 * (now - self._begun)), used / _CPU_SHARE)


SAMPLE_S: Final = 0.2
MIN_DURATION_S: Final = 6.0  # the shortest time that has samples enough
# When the heap is counted, as shares of the time: the first time after the warm-up, the last time with room to climb.
_COUNTS_AT: Final = (0.25, 0.6, 0.95)


def investigate(*, duration: float = 20.0, wait: Callable[[float], object] = time.sleep) -> Diagnosis:
    """Look on for a while, and return whether this process leaks, and who holds it.

    Blocks its thread, which is not to be the one of the event loop; the others go on between the walks over the heap.

    Args:
        seconds: how long, at least 6; 20 find what grows by 0.2 MB/s, slower leaks need longer.
        wait: how to pass so many seconds; a true result ends the investigation early.

    Raises:
        ConfigError: for less than 6 seconds.
        ReadingError: when the system does not say what is resident.

    Cost: some 15 us five times a second, and three counts of the heap and the climbs, some 2 s of CPU for 750,000
    objects, in stops of at most some 80 ms.
    """
    investigation = Investigation()
    for pause_s in steps(investigation, parse_duration(duration)):
        if wait(pause_s):
            break
    return investigation.diagnosis()


async def investigate_async(*, duration: float = 20.0) -> Diagnosis:
    """Return the same as `investigate`, from a task: the event loop has its turn between the walks over the heap.

    Args:
        seconds: see `investigate`.

    Raises:
        ConfigError: for less than 6 seconds.
        ReadingError: when the system does not say what is resident.
    """
    investigation = Investigation()
    for pause_s in steps(investigation, parse_duration(duration)):
        await asyncio.sleep(pause_s)
    return investigation.diagnosis()


def parse_duration(seconds: object) -> float:
    """Return `seconds`, at least 6.

    Raises:
        ConfigError: for anything else.
    """
    length = parse_seconds(seconds, name="seconds")
    if length < MIN_DURATION_S:
        raise ConfigError("seconds", seconds, f"at least {MIN_DURATION_S:.0f} seconds")
    return length


def steps(
    investigation: Investigation, seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[float]:
    """Investigate for so many seconds; yield how many to wait before each step.

    Args:
        investigation: what is driven.
        seconds: how long.
        clock: tells the time.
    """
    begun = clock()
    gaps = jittered_intervals(SAMPLE_S)
    sample_at = begun
    for is_looking in _heap_passes(investigation, begun, seconds, clock):
        # In the middle of a look as well: on a busy machine it takes seconds.
        now = clock()
        if now >= sample_at:
            investigation.sample()
            sample_at = now + next(gaps)
        yield _YIELD_S if is_looking else max(sample_at - now, _YIELD_S)


def _heap_passes(
    investigation: Investigation, begun: float, seconds: float, clock: Callable[[], float]
) -> Iterator[bool]:
    counts_at = [begun + share * seconds for share in _COUNTS_AT]
    while (now := clock()) < begun + seconds:
        if counts_at and now >= counts_at[0]:
            counts_at.pop(0)
            for _ in investigation.count():
                yield True
        yield False
    for _ in investigation.climb():
        yield True


# Investigate when asked, in a running service: `Investigator`.
#
# Covers: a thread that waits to be asked, by a signal or by whoever sees memory run short; at most one answer in ten
# minutes.
# Leaves to others: the investigation (`_investigate`), noticing that memory is short (`memtools.monitor`, or the user).

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
        self._seconds = parse_duration(seconds)
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
