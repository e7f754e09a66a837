"""Ways to run an investigation: for a while, beside a program, or on request in a service.

Each decides when samples are taken and the heap is counted; the steps themselves are those of `Investigation`.
"""

import _thread
import asyncio
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType, TracebackType
from typing import Any, Final, Self

from memtools._threads import OwnThread, disregard_thread
from memtools.errors import ConfigError
from memtools.leaks._diagnosis import Diagnosis
from memtools.leaks._investigation import Investigation
from memtools.leaks._samples import jittered_intervals
from memtools.units import parse_seconds

_SAMPLE_S: Final = 0.1  # programs under `run` may be short
_FIRST_COUNT_S: Final = 1.0
_LONGEST_GAP_S: Final = 10.0
_CPU_SHARE: Final = 0.05  # of a processor, for counting the heap and walking referrers
_YIELD_S: Final = 0.001


class BackgroundInvestigation:
    """An investigation beside a program, from `start()` to `finish()`, for `python -m memtools run --leaks`.

    It counts and walks the heap at growing intervals, so that there is an answer whenever the program ends. Its thread
    is one that `threading` does not know: the program's own counts and lists of threads do not change, and the end of
    the program does not wait for it.

    Args:
        clock: monotonic seconds.
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
        """Start the investigating thread."""
        self._begun = self._clock()
        self._done.acquire()
        _thread.start_new_thread(self._run, ())

    def mark_program_end(self) -> None:
        """Record that the program's own code has ended: what it frees from now on says nothing about leaks."""
        self._ended_at = self._clock()

    def finish(self, *, timeout: float = 5.0, apart_from: Collection[int] = ()) -> Diagnosis:
        """Stop the investigation and return what it found.

        Args:
            timeout: seconds to wait for a walk over the heap that is in progress.
            apart_from: the ids of child processes that are left out.

        Raises:
            RuntimeError: when the investigation has failed.
        """
        self._stopped = True
        # If a walk takes longer on a busy machine, the result is what was found before; the thread ends with the
        # process.
        self._done.acquire(timeout=timeout)
        if self._failure:
            raise RuntimeError(self._failure)
        ended = self._ended_at if self._ended_at is not None else self._clock()
        return self._investigation.diagnosis(until=ended, is_ending=True, apart_from=apart_from)

    def _run(self) -> None:
        disregard_thread()
        try:
            for pause_s in self._steps():
                if self._stopped:
                    return
                time.sleep(pause_s)
        except Exception as error:  # the program must not see it; `finish` reports it
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._done.release()

    def _steps(self) -> Iterator[float]:
        gaps = jittered_intervals(_SAMPLE_S)
        sample_at = self._begun
        for pause_s in self._heap_passes():
            # Between the slices of a heap pass, too: on a busy machine a pass takes seconds.
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
            # CPU time of the thread: on a busy machine most of the wall time is waiting, which costs nothing.
            used = time.thread_time()
            for _ in self._investigation.count():
                yield _YIELD_S
            for _ in self._investigation.find_holders():
                yield _YIELD_S
            used = time.thread_time() - used
            count_at = now + max(1.0, min(_LONGEST_GAP_S, 0.5 * (now - self._begun)), used / _CPU_SHARE)


SAMPLE_S: Final = 0.2
MIN_DURATION_S: Final = 6.0  # the shortest time that gives enough samples
# When the heap is counted, as shares of the time: first after the warm-up, last with time left for the referrer walk.
_COUNTS_AT: Final = (0.25, 0.6, 0.95)


def investigate(*, duration: float = 20.0, wait: Callable[[float], object] = time.sleep) -> Diagnosis:
    """Investigate for a while, and return whether this process leaks and what holds the leak.

    Blocks the calling thread, which must not be that of the event loop; other threads run between the walks over the
    heap.

    Args:
        duration: seconds, at least 6; 20 seconds find growth of 0.2 MB/s, slower leaks need longer.
        wait: waits for so many seconds; a true result ends the investigation early.

    Raises:
        ConfigError: for less than 6 seconds.
        ReadingError: when resident memory cannot be read.

    Cost: some 15 us five times a second, three counts of the heap and the referrer walks: some 2 s of CPU for 750,000
    objects, in pauses of at most some 80 ms.
    """
    investigation = Investigation()
    for pause_s in steps(investigation, parse_duration(duration)):
        if wait(pause_s):
            break
    return investigation.diagnosis()


async def investigate_async(*, duration: float = 20.0) -> Diagnosis:
    """Return the same as `investigate`, from a task: the event loop runs between the walks over the heap.

    Args:
        duration: see `investigate`.

    Raises:
        ConfigError: for less than 6 seconds.
        ReadingError: when resident memory cannot be read.
    """
    investigation = Investigation()
    for pause_s in steps(investigation, parse_duration(duration)):
        await asyncio.sleep(pause_s)
    return investigation.diagnosis()


def parse_duration(duration: object) -> float:
    """Return `duration` in seconds, at least 6.

    Raises:
        ConfigError: for anything else.
    """
    length = parse_seconds(duration, name="duration")
    if length < MIN_DURATION_S:
        raise ConfigError("duration", duration, f"at least {MIN_DURATION_S:.0f} seconds")
    return length


def steps(
    investigation: Investigation, seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[float]:
    """Run the steps of an investigation; yield how many seconds to wait before each.

    Args:
        investigation: its steps are run.
        seconds: how long, in seconds.
        clock: monotonic seconds.
    """
    begun = clock()
    gaps = jittered_intervals(SAMPLE_S)
    sample_at = begun
    for is_looking in _heap_passes(investigation, begun, seconds, clock):
        # Between the slices of a heap pass, too: on a busy machine a pass takes seconds.
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
    for _ in investigation.find_holders():
        yield True


_log: Final = logging.getLogger("memtools.leaks")

# What `signal.signal` returned: a function, SIG_DFL or SIG_IGN, or None for a handler that C code has set.
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


def log_diagnosis(diagnosis: Diagnosis) -> None:
    """Log one line per leak as a warning, or one line that there is no leak."""
    level = logging.WARNING if diagnosis.is_leak else logging.INFO
    for line in diagnosis.lines():
        _log.log(level, "%s", line)


class Investigator:
    """A thread that investigates on request, for the duration of a `with` block.

    ```py
    with Investigator() as leaks:
        leaks.request_on_signal(signal.SIGUSR1)
        await serve()
    ```

    Args:
        duration: seconds that an investigation takes, at least 6.
        min_interval: seconds between the starts of two investigations; earlier requests are ignored and logged.
        on_diagnosis: called in the thread with each diagnosis; an exception that it raises is logged.
        run: makes one investigation: called with `duration` in seconds and `wait`, which waits and is true when the
            investigation has to end.
        clock: monotonic seconds.

    Raises:
        ConfigError: for times that make no sense.

    Threads: `request()` may be called from any thread, and from a signal handler.
    """

    def __init__(
        self,
        *,
        duration: float = 20.0,
        min_interval: float = 600.0,
        on_diagnosis: Callable[[Diagnosis], object] = log_diagnosis,
        run: Callable[..., Diagnosis] = investigate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._duration_s = parse_duration(duration)
        self._min_interval_s = parse_seconds(min_interval, name="min_interval")
        self._on_diagnosis = on_diagnosis
        self._run = run
        self._clock = clock
        self._next_allowed_at = float("-inf")
        # `SimpleQueue.put` is reentrant: a signal handler may run in the middle of it.
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._replaced: list[tuple[int, _Handler]] = []

    def __enter__(self) -> Self:
        self._stopping.clear()
        self._thread = OwnThread(target=self._serve, name="memtools leaks", daemon=True)
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
        self._requests.put(False)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def request(self, *_: object) -> None:
        """Request an investigation, and return at once; arguments are ignored, so that it can serve as a callback."""
        if self._requests.empty():
            self._requests.put(True)

    def request_on_signal(self, number: int) -> None:
        """Request an investigation at each such signal.

        A handler that was set before is called, too, and is restored at the end of the block.

        Args:
            number: for example `signal.SIGUSR1`.

        Raises:
            ValueError: outside of the main thread, as `signal.signal` does.
            OSError: for a signal that cannot be handled.
        """
        self._replaced.append((number, signal.signal(number, self._on_signal)))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request()
        before = next((handler for known, handler in self._replaced if known == number), None)
        if callable(before):
            before(number, frame)

    def _serve(self) -> None:
        while self._requests.get() and not self._stopping.is_set():
            if self._clock() < self._next_allowed_at:
                _log.info("leak investigation was requested again within %.0f s: ignored", self._min_interval_s)
                continue
            self._next_allowed_at = self._clock() + self._min_interval_s
            try:
                self._investigate()
            except Exception:
                _log.exception("leak investigation failed, or its diagnosis could not be delivered")

    def _investigate(self) -> None:
        diagnosis = self._run(duration=self._duration_s, wait=self._stopping.wait)
        if not self._stopping.is_set():
            self._on_diagnosis(diagnosis)
