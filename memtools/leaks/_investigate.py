"""Look for leaks for a while: `investigate`, in a thread, and `investigate_async`, on the loop.

Covers: when samples and counts are taken.
Leaves to others: taking them (`_investigation`).
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final

from memtools.errors import ConfigError
from memtools.leaks._diagnosis import Diagnosis
from memtools.leaks._investigation import Investigation
from memtools.leaks._samples import uneven
from memtools.units import parse_seconds

SAMPLE_S: Final = 0.2
LEAST_S: Final = 6.0  # the shortest time that has samples enough
# When the heap is counted, as shares of the time: the first time after the warm-up, the last time with room to climb.
_COUNTS_AT: Final = (0.25, 0.6, 0.95)
# Between two walks over the heap: long enough for other threads to take the GIL.
_BREATH_S: Final = 0.001


def investigate(*, seconds: float = 20.0, wait: Callable[[float], object] = time.sleep) -> Diagnosis:
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
    for pause_s in steps(investigation, parse_length(seconds)):
        if wait(pause_s):
            break
    return investigation.diagnosis()


async def investigate_async(*, seconds: float = 20.0) -> Diagnosis:
    """Return the same as `investigate`, from a task: the event loop has its turn between the walks over the heap.

    Args:
        seconds: see `investigate`.

    Raises:
        ConfigError: for less than 6 seconds.
        ReadingError: when the system does not say what is resident.
    """
    investigation = Investigation()
    for pause_s in steps(investigation, parse_length(seconds)):
        await asyncio.sleep(pause_s)
    return investigation.diagnosis()


def parse_length(seconds: object) -> float:
    """Return `seconds`, at least 6.

    Raises:
        ConfigError: for anything else.
    """
    length = parse_seconds(seconds, name="seconds")
    if length < LEAST_S:
        raise ConfigError("seconds", seconds, f"at least {LEAST_S:.0f} seconds")
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
    gaps = uneven(SAMPLE_S)
    sample_at = begun
    for is_looking in _looks(investigation, begun, seconds, clock):
        # In the middle of a look as well: on a busy machine it takes seconds.
        now = clock()
        if now >= sample_at:
            investigation.sample()
            sample_at = now + next(gaps)
        yield _BREATH_S if is_looking else max(sample_at - now, _BREATH_S)


def _looks(investigation: Investigation, begun: float, seconds: float, clock: Callable[[], float]) -> Iterator[bool]:
    counts_at = [begun + share * seconds for share in _COUNTS_AT]
    while (now := clock()) < begun + seconds:
        if counts_at and now >= counts_at[0]:
            counts_at.pop(0)
            for _ in investigation.count():
                yield True
        yield False
    for _ in investigation.climb():
        yield True
