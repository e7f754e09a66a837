"""The kind of a leak: Python objects, a C library, fragmentation, or none.

A pure function of cheap counters over time. It judges floors, never single points. The floor at a moment is the minimum
from then on: what was never given back. A sawtooth has a flat floor up to its last tooth, a burst leaves no trace in
it, a leak is its own floor. A floor rises steadily if it rises in most parts of the time, in both halves, and still at
the end. The floor of a cache that fills up gets flat.

Blocks are the best single metric: they rose in all of 22 leaks of Python objects and in none of 8 healthy programs.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import pairwise
from typing import Final

from memtools._records import record
from memtools.readings._counters import Counters

MIN_SAMPLES: Final = 24
_WARM_UP: Final = 0.25  # of the time: imports, pools and caches of the first seconds
_PARTS: Final = 6
_RISING_PARTS: Final = 5  # of them
_RISING: Final = 0.25  # of the mean rise, for a part to count as rising
_STILL: Final = 0.5  # of the first half's rise, for the second half
_WITHIN: Final = 0.6  # of the median span within a part
_GIVEN_BACK: Final = 1.5  # of what one part gave back of the parts before
_LARGEST: Final = 512  # bytes of the largest block in one of pymalloc's arenas
_MAPPING: Final = 16 << 10  # bytes that come with each block, where each block stands for a mapping
_BEYOND: Final = 2.0  # times the growth of what Python and C have in use
_MAPPED: Final = (
    "resident memory grows, far more than Python and C have in use: mmap, stacks, or fragments of free memory"
)
_AFTER_END: Final = 20  # one sample in this many comes after the end
_ENDING: Final = 0.15  # of the time, in which an ending program gives memory back
_LAST: Final = 0.15  # of the whole rise, for the last third

# Smaller rises look like what any program does in a minute.
_MIN_BLOCKS: Final = 64
_BLOCKS_ALONE: Final = 1_000  # a leak even where their bytes still fit into free pages
_MIN_BYTES: Final = 256 << 10
_MIN_RESIDENT: Final = 1 << 20  # Python and C take pages from the system by the MiB
_NOISE: Final = 0.002  # of the first floor: large processes fluctuate more


class LeakKind(Enum):
    """What grows and is not given back; `UNKNOWN` if there is too little to tell."""

    PYTHON = "python"
    NATIVE = "native"
    FRAGMENTATION = "fragmentation"
    NONE = "none"
    UNKNOWN = "unknown"


@record
class LeakVerdict:
    """The verdict on the counters.

    Attributes:
        kind: what grows.
        bytes_per_s: growth of resident memory (of traced bytes, where tracemalloc traces), in bytes per second; 0 if
            there is no leak.
        blocks_per_s: growth of Python's allocated blocks, per second.
        seconds: how long the samples took, without the warm-up.
        reason: the reason, as a sentence.
    """

    kind: LeakKind
    bytes_per_s: float
    blocks_per_s: float
    seconds: float
    reason: str

    @property
    def is_leak(self) -> bool:
        """Whether something grows."""
        return self.kind not in (LeakKind.NONE, LeakKind.UNKNOWN)


def judge_leak(samples: Sequence[Counters], *, warm_up: float = _WARM_UP, is_ending: bool = False) -> LeakVerdict:
    """Return which kind of memory grows and is never given back.

    Args:
        samples: in order of time, some 100 over 20 seconds or more; a slow leak needs a longer time.
        warm_up: the share of the time at the beginning that is left out, from 0 to below 1.
        is_ending: whether the program was ending. It then gives back what it has leaked: samples after the highest
            figures of the last part are left out.
    """
    kept = _after(samples, warm_up)
    kept = _before_the_end(kept) if is_ending else kept
    if len(kept) < MIN_SAMPLES:
        return LeakVerdict(LeakKind.UNKNOWN, 0.0, 0.0, 0.0, f"{len(kept)} samples are too few for a verdict")
    seconds = max(kept[_part_starts([one.at for one in kept])[-1]].at - kept[0].at, 1e-9)
    blocks = _floor_rise(kept, lambda one: one.blocks, _MIN_BLOCKS)
    malloc = _floor_rise(kept, lambda one: one.malloc_bytes, _MIN_BYTES)
    traced = _floor_rise(kept, lambda one: one.traced_bytes, _MIN_BYTES)
    resident = _floor_rise(kept, lambda one: one.resident_bytes, _MIN_RESIDENT)

    # A heap that has free pages can take much before the process grows.
    in_bytes = max(traced.total or resident.total or malloc.total, 0.0)
    kind, reason = _kind(kept, blocks, malloc, traced, resident)
    if kind is LeakKind.NONE:
        return LeakVerdict(kind, 0.0, 0.0, seconds, reason)
    return LeakVerdict(kind, in_bytes / seconds, blocks.total / seconds, seconds, reason)


@record
class _FloorRise:
    """How a floor rose.

    Attributes:
        total: its whole rise.
        is_steady: whether it rises all the time.
        is_known: whether the counter was available.
    """

    total: float
    is_steady: bool
    is_known: bool = True


def _kind(
    kept: Sequence[Counters], blocks: _FloorRise, malloc: _FloorRise, traced: _FloorRise, resident: _FloorRise
) -> tuple[LeakKind, str]:
    # A Python block that C's malloc did not give has at most 512 bytes: it may be an object that stands for a mapping.
    # Where memory of malloc is given back at the end, its floor says little: hence the comparison of bytes per block.
    is_beyond = resident.total > _BEYOND * (malloc.total + _LARGEST * blocks.total)
    if malloc.is_known and resident.is_steady and is_beyond and resident.total > _MAPPING * blocks.total:
        return LeakKind.FRAGMENTATION, _MAPPED
    in_bytes = any(one.is_steady for one in (malloc, traced, resident))
    if traced.is_steady:
        return LeakKind.PYTHON, "what tracemalloc sees grows all the time"
    if blocks.is_steady and (in_bytes or blocks.total >= _BLOCKS_ALONE):
        return LeakKind.PYTHON, "Python's allocated blocks grow all the time"
    if malloc.is_steady and resident.is_steady:
        return LeakKind.NATIVE, _why_native(kept)
    if resident.is_steady and not malloc.is_known:
        return (
            LeakKind.NATIVE,
            "resident memory grows and Python's blocks do not; statistics of C's malloc are not available here",
        )
    if resident.is_steady:
        return LeakKind.FRAGMENTATION, _MAPPED
    return LeakKind.NONE, _why_none(resident, blocks)


def _why_native(kept: Sequence[Counters]) -> str:
    if kept[-1].blocks == 0:
        return "C's malloc has ever more in use; Python uses it here, too, and its blocks cannot be counted"
    return "C's malloc has ever more in use while Python's blocks stay: a C library, or one buffer that grows"


def _why_none(resident: _FloorRise, blocks: _FloorRise) -> str:
    if resident.total < _MIN_RESIDENT and blocks.total < _BLOCKS_ALONE:
        return "what is not given back does not grow"
    return "what is not given back grew for a while, and not all the time"


def _after(samples: Sequence[Counters], warm_up: float) -> Sequence[Counters]:
    if len(samples) < 2:
        return samples
    begin = samples[0].at + warm_up * (samples[-1].at - samples[0].at)
    return samples[bisect_left(samples, begin, key=lambda one: one.at) :]


def _before_the_end(kept: Sequence[Counters]) -> Sequence[Counters]:
    if len(kept) < MIN_SAMPLES:
        return kept
    begin = kept[-1].at - _ENDING * (kept[-1].at - kept[0].at)
    last = range(bisect_left(kept, begin, key=lambda one: one.at), len(kept))
    by_blocks = max(last, key=lambda place: kept[place].blocks)
    by_malloc = max(last, key=lambda place: kept[place].malloc_bytes or 0)
    return kept[: min(by_blocks, by_malloc) + 1]


def _floor_rise(kept: Sequence[Counters], figure: Callable[[Counters], int | None], minimum: float) -> _FloorRise:
    known = [(one.at, value) for one in kept if (value := figure(one)) is not None]
    if len(known) < len(kept):
        return _FloorRise(0.0, is_steady=False, is_known=False)
    floor = _floor([value for _, value in known])
    starts = _part_starts([at for at, _ in known])
    rises = [float(floor[after] - floor[before]) for before, after in pairwise(starts)]
    total = sum(rises)
    fluctuation = _fluctuation([value for _, value in known], starts)
    needed = max(minimum, _NOISE * floor[0], fluctuation)
    return _FloorRise(total, total >= needed and _is_steady(rises, total))


def _fluctuation(values: Sequence[int], starts: Sequence[int]) -> float:
    # How far a floor may rise by chance: less than the span within a part, and than what a part gave back.
    parts = [values[before : after + 1] for before, after in pairwise(starts)]
    highest, given_back = 0, 0
    for part in parts:
        highest = max(highest, min(part))
        given_back = max(given_back, highest - min(part))
    spans = sorted(max(part) - min(part) for part in parts)
    return max(_WITHIN * spans[len(spans) // 2], _GIVEN_BACK * given_back)


def _floor(values: Sequence[int]) -> list[int]:
    floor: list[int] = []
    minimum = values[-1]
    for value in reversed(values):
        minimum = min(minimum, value)
        floor.append(minimum)
    floor.reverse()
    return floor


def _part_starts(times: Sequence[float]) -> list[int]:
    # The start of each part, and an end with some samples after it: the floor of a single sample is the sample itself.
    step = (times[-1] - times[0]) / _PARTS
    inner = [bisect_left(times, times[0] + place * step) for place in range(1, _PARTS)]
    end = len(times) - 1 - len(times) // _AFTER_END
    return [0, *inner, max(end, inner[-1])]  # there may be few samples in the last part


def _is_steady(rises: Sequence[float], total: float) -> bool:
    rising = sum(one >= _RISING * total / _PARTS for one in rises)
    first, second = sum(rises[: _PARTS // 2]), sum(rises[_PARTS // 2 :])
    last = sum(rises[-_PARTS // 3 :])
    # The mirror of it: a rise that has just begun may end soon.
    return rising >= _RISING_PARTS and second >= _STILL * first and first >= _LAST * total and last >= _LAST * total
