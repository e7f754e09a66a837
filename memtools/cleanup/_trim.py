"""Ask the registered things to shrink, one after the other, in slices.

Covers: the time that each gets, asking again what could not finish, what raises, returns late or keeps failing.
Leaves to others: who is registered (`_register`), in which order (`_order`), what shrinking means (the thing itself).
"""

import logging
import time
from collections.abc import Callable, Iterator

from memtools.cleanup._order import in_order, size_of
from memtools.cleanup._past import Past
from memtools.cleanup._records import ThingStatistics, TrimStatistics
from memtools.cleanup._register import Place, Shrinkable, places
from memtools.cleanup._seldom import Seldom
from memtools.cleanup._step import known_bytes
from memtools.readings import Level
from memtools.units import parse_seconds

_PATIENCE = 3  # slices in a row in which a thing that is not done may give nothing
# Slices. On a busy machine a thread may wait for its turn for some of them, which is not the thing's fault.
_TOO_LATE = 10  # after its deadline; what does not say whether it is done is not asked again in this climb
_BLOCKED = 100  # in all; not asked again in this climb, and it counts as a failure
_SMALL_BYTES = 4096
_SHOWN = 10  # things in trouble
_NAME_AT_MOST = 100  # characters

_log = logging.getLogger("memtools.cleanup")


class TrimRegistered:
    """The step that asks every registered thing to `shrink`.

    Args:
        slice_s: how long a slice lasts, in seconds. A thing gets at least half of one.
        clock: monotonic seconds; `shrink` is given deadlines by it.

    Raises:
        ConfigError: for a slice that is not a number of seconds.
    """

    name: str = "trim"
    least: Level = Level.WARNING

    __slots__ = ("_asked", "_clock", "_failures", "_overruns", "_seldom", "_slice_s")

    def __init__(self, *, slice_s: float = 0.005, clock: Callable[[], float] = time.monotonic) -> None:
        self._slice_s = parse_seconds(slice_s, name="slice_s")
        self._clock = clock
        self._seldom = Seldom(_log)
        self._asked = 0
        self._failures = 0
        self._overruns = 0

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Ask all, without a pause; return the bytes given back, as far as they are known."""
        return sum(self.slices(level, lambda: deadline - self._clock()))

    def slices(self, level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Ask all, in slices; see `SlicedStep`."""
        part = _Slice(self._slice_s, self._clock, left)
        for place in in_order():
            while place is not None and self._ask(place, level, part):
                yield part.end()
                if not part.begin():
                    return
            if part.is_nearly_over():
                yield part.end()
                if not part.begin():
                    return
        if part.asked:
            yield part.end()

    def statistics(self) -> TrimStatistics:
        """Return how asking fared so far."""
        now = self._clock()
        troubled = [told for place in places() if (told := _trouble(place, now)) is not None]
        troubled.sort(key=lambda thing: thing.failures + thing.overruns, reverse=True)
        return TrimStatistics(self._asked, self._failures, self._overruns, tuple(troubled[:_SHOWN]))

    def _ask(self, place: Place, level: Level, part: "_Slice") -> bool:
        """Ask one thing; return whether to ask it again in the next slice."""
        # Held here only: between two slices it may die, leave the register or be changed.
        thing = place()
        if thing is None or not place.is_taken():
            return False
        began = self._clock()
        if place.past is not None and place.past.breaker.is_open(began):
            return False

        part.asked += 1
        self._asked += 1
        try:
            gained_bytes = known_bytes(thing.shrink(level, part.until))
            says: object = getattr(thing, "is_shrinking", None)
        except Exception:
            self._fail(thing, _past_of(place))
            return False

        ended = self._clock()
        part.freed_bytes += gained_bytes
        _remember(place, gained_bytes, size_of(thing))
        late_s = ended - part.until
        if self._has_blocked(place, began, ended, late_s):
            return False
        if not isinstance(says, bool):
            says = gained_bytes > 0 and 0 <= late_s < _TOO_LATE * self._slice_s
        return says and part.has_patience(gained_bytes)

    def _fail(self, thing: Shrinkable, past: Past) -> None:
        now = self._clock()
        self._failures += 1
        past.failures += 1
        past.gained_bytes, past.size_bytes = 0, size_of(thing)
        past.breaker.failed(now)
        self._seldom.failure(now, "%s could not shrink; the others are asked all the same", _name(thing))

    def _has_blocked(self, place: Place, began: float, ended: float, late_s: float) -> bool:
        if late_s > self._slice_s:
            self._overruns += 1
            _past_of(place).overruns += 1
        has_blocked = ended - began > _BLOCKED * self._slice_s
        if has_blocked:
            _past_of(place).breaker.failed(ended)
        elif place.past is not None:
            place.past.breaker.succeeded()
        return has_blocked


class _Slice:
    """One slice of time, and the next, and what was given back in each."""

    __slots__ = ("_clock", "_idle", "_left", "_slice_s", "asked", "freed_bytes", "until")

    def __init__(self, slice_s: float, clock: Callable[[], float], left: Callable[[], float]) -> None:
        self._slice_s = slice_s
        self._clock = clock
        self._left = left
        self._idle = 0
        self.asked = 0
        self.freed_bytes = 0
        self.until = clock() + slice_s
        self.begin()

    def begin(self) -> bool:
        """Begin the next slice; return whether there is time for one."""
        left_s = self._left()
        self.until = self._clock() + min(self._slice_s, left_s)
        return left_s > 0

    def end(self) -> int:
        """Return what was given back in this slice, in bytes."""
        freed_bytes, self.freed_bytes = self.freed_bytes, 0
        return freed_bytes

    def is_nearly_over(self) -> bool:
        """Whether less than half of it is left: too little to ask the next thing."""
        return self.until - self._clock() < self._slice_s / 2

    def has_patience(self, gained_bytes: int) -> bool:
        """Whether to go on with a thing that is not done and gave `gained_bytes`."""
        self._idle = 0 if gained_bytes else self._idle + 1
        if self._idle < _PATIENCE:
            return True
        self._idle = 0
        return False


def _past_of(place: Place) -> Past:
    if place.past is None:
        place.past = Past()
    return place.past


def _remember(place: Place, gained_bytes: int, size_bytes: int) -> None:
    # Nothing is kept of the many that are small and gave nothing: memory is short, and they come last anyway.
    if place.past is None and not gained_bytes and size_bytes < _SMALL_BYTES:
        return
    past = _past_of(place)
    past.gained_bytes, past.size_bytes = gained_bytes, size_bytes


def _trouble(place: Place, now: float) -> ThingStatistics | None:
    thing, past = place(), place.past
    if thing is None or past is None or not (past.failures or past.overruns):
        return None
    return ThingStatistics(_name(thing), past.failures, past.overruns, past.breaker.is_open(now))


def _name(thing: object) -> str:
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    try:
        own = getattr(thing, "name", None)
    except Exception:
        return kind
    return f"{kind} {own[:_NAME_AT_MOST]!r}" if isinstance(own, str) else kind
