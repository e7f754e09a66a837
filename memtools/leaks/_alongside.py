"""Look on while a program runs, however long that is: `Alongside`, for `python -m memtools run --leaks`.

Covers: a thread that samples, counts and climbs at growing distances, so that there is an answer whenever it ends.
Leaves to others: the steps themselves (`_investigation`).

The thread is one that `threading` does not know of: the program's own counts and lists of threads stay as they are, and
its end does not wait for it.
"""

import _thread
import time
from collections.abc import Callable, Iterator
from typing import Final

from memtools.leaks._diagnosis import Diagnosis
from memtools.leaks._investigation import Investigation
from memtools.leaks._samples import uneven

_SAMPLE_S: Final = 0.1  # programs may be short
_FIRST_COUNT_S: Final = 1.0
_LONGEST_GAP_S: Final = 10.0
_SHARE: Final = 0.05  # of a processor, for counting and climbing
_BREATH_S: Final = 0.001


class Alongside:
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
        _thread.start_new_thread(self._look_on, ())

    def note_end(self) -> None:
        """Remember that the program's own code has ended, and is now giving back what it had."""
        self._ended_at = self._clock()

    def finish(self, *, patience_s: float = 5.0) -> Diagnosis:
        """Stop looking on, and return what was found.

        Args:
            patience_s: how long to wait for a walk over the heap that goes on.

        Raises:
            RuntimeError: when looking on has failed.
        """
        self._stopped = True
        # Where a walk takes longer on a busy machine, what was found before is told; the thread dies with the process.
        self._done.acquire(timeout=patience_s)
        if self._failure:
            raise RuntimeError(self._failure)
        ended = self._ended_at if self._ended_at is not None else self._clock()
        return self._investigation.diagnosis(until=ended, is_ending=True)

    def _look_on(self) -> None:
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
        gaps = uneven(_SAMPLE_S)
        sample_at = self._begun
        for pause_s in self._looks():
            # In the middle of a look as well: on a busy machine it takes seconds.
            now = self._clock()
            if now >= sample_at:
                self._investigation.sample()
                sample_at = now + next(gaps)
            yield pause_s if pause_s else max(sample_at - now, _BREATH_S)

    def _looks(self) -> Iterator[float]:
        count_at = self._begun + _FIRST_COUNT_S
        while True:
            yield 0.0  # until the next sample
            now = self._clock()
            if now < count_at or self._ended_at is not None:
                continue
            # The thread's own time: on a busy machine most of the wall's is waiting, which harms nobody.
            used = time.thread_time()
            for _ in self._investigation.count():
                yield _BREATH_S
            for _ in self._investigation.climb():
                yield _BREATH_S
            used = time.thread_time() - used
            count_at = now + max(1.0, min(_LONGEST_GAP_S, 0.5 * (now - self._begun)), used / _SHARE)
