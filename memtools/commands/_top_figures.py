"""What `memtools top` shows: the processes whose black boxes are watched, and what their owners hold."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from heapq import nlargest, nsmallest
from itertools import pairwise
from operator import itemgetter
from statistics import median
from typing import Final, Literal, TypeAlias

from memtools._records import as_dict, record
from memtools.analysis import forecast
from memtools.black_box import Holding, PastReading
from memtools.black_box._live import LiveBox, Look, State

Order: TypeAlias = Literal["live", "rate", "name"]

_SCAN_S: Final = 1.0  # between two looks at the folder, and at which processes run
_RATE_S: Final = 30.0  # a rate is that of so many seconds, at most
_FORECAST_S: Final = 2.0
_MIN_FORECAST_S: Final = 20.0  # a shorter rise is taken for the start of the program
_MIN_FLOORS, _MAX_FLOORS = 12, 40
_KEPT_S: Final = 60.0  # a process that has ended is shown for so long


@record
class OwnerFigures:
    """What the owners of one name hold in one process.

    Attributes:
        pid: the process.
        holding: their path, what they hold, how many are open.
        rate_bytes_per_s: how fast that changes; None at the first look.
    """

    pid: int
    holding: Holding
    rate_bytes_per_s: float | None

    def to_dict(self) -> dict[str, object]:
        """Return the figures as a dict that JSON can hold; names come as they are."""
        return {
            "pid": self.pid,
            "path": list(self.holding.path),
            "live_bytes": self.holding.held_bytes,
            "open_owners": self.holding.open_owners,
            "rate_bytes_per_s": self.rate_bytes_per_s,
        }


@record
class ProcessFigures:
    """One process.

    Attributes:
        pid: the process.
        name: what the program is called.
        path: its black box.
        state: whether it runs, has ended, or was killed.
        counted_bytes: what its owners hold together; None where no ledger counts.
        resident_bytes: memory in use, at the last reading; None as long as there is no reading, as for the next four.
        limit_bytes: the limit.
        level: 0 for normal, 1 for warning, 2 for critical.
        age_s: the seconds since that reading.
        rate_bytes_per_s: how fast resident memory has changed in the last half minute.
        seconds_to_limit: when the limit is reached, if the floor goes on to rise; None where it does not rise.
        notes: why figures may be wrong.
    """

    pid: int
    name: str
    path: str
    state: State
    counted_bytes: int | None
    resident_bytes: int | None
    limit_bytes: int | None
    level: int | None
    age_s: float | None
    rate_bytes_per_s: float | None
    seconds_to_limit: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the figures as a dict that JSON can hold."""
        return as_dict(self)


class WatchedProcess:
    """A process whose file is looked at again and again.

    Args:
        box: its file.
        clock: seconds.
        wall: seconds since the epoch.
    """

    def __init__(self, box: LiveBox, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.box = box
        self._clock, self._wall = clock, wall
        self._look = Look({}, {}, None, ())
        self._looked_at = clock()
        self._state: State = "alive"
        self._state_at: float | None = None
        self._ended_at: float | None = None
        # What the owners held some time ago: a rate is taken over one to two halves of its time.
        self._older = self._newer = (0.0, dict[int, int]())
        self._has_older = False
        self._forecast_at: float | None = None
        self._seconds_to_limit: float | None = None

    def update(self) -> None:
        """Look at the file. Of a process that has ended the last figures stay."""
        now = self._clock()
        if self._state != "alive":
            return
        if self._state_at is None or now - self._state_at >= _SCAN_S:
            self._state_at = now
            self._state = self.box.state()
        # First the state: what a process has left is as right as what it has.
        self._look = self.box.look()
        self._looked_at = now
        self.box.update_readings()
        if self._state != "alive":
            self._ended_at = now
        if not self._has_older:
            self._older = self._newer = (now, self._look.held)
            self._has_older = True
        elif now - self._newer[0] >= _RATE_S / 2:
            self._older, self._newer = self._newer, (now, self._look.held)
        if self._forecast_at is None or now - self._forecast_at >= _FORECAST_S:
            self._forecast_at = now
            self._seconds_to_limit = seconds_to_limit(self.box.readings)

    @property
    def is_over(self) -> bool:
        """Whether its end was shown for long enough."""
        return self._ended_at is not None and self._clock() - self._ended_at > _KEPT_S

    def figures(self) -> ProcessFigures:
        """Return the figures of the process as of the last look."""
        readings = self.box.readings
        last = readings[-1] if readings else None
        return ProcessFigures(
            pid=self.box.pid,
            name=self.box.name,
            path=self.box.path,
            state=self._state,
            counted_bytes=self._look.counted_bytes,
            resident_bytes=None if last is None else last.resident_bytes,
            limit_bytes=None if last is None else last.limit_bytes,
            level=None if last is None else last.level,
            age_s=None if last is None else max(0.0, self._wall() - last.at),
            rate_bytes_per_s=resident_rate(readings),
            seconds_to_limit=self._seconds_to_limit if self._state == "alive" else None,
            notes=self._look.notes,
        )

    def first(self, order: Order, most: int) -> list[tuple[int, int]]:
        """Return the first accounts in an order, with what they hold: the most, the fastest growing, or by name."""
        held = [(account, size) for account, size in self._look.held.items() if size]
        if order == "live":
            return nlargest(most, held, key=itemgetter(1))
        if order == "rate":
            return nlargest(most, held, key=lambda pair: (self.rate(*pair) or 0.0, pair[1]))
        return nsmallest(most, held, key=lambda pair: self.box.path_of(pair[0]))

    def owner(self, account: int, size: int) -> OwnerFigures:
        """Return the figures of the owners of an account, which hold so many bytes."""
        holding = Holding(self.box.path_of(account), "", size, self._look.open_owners.get(account, 0))
        return OwnerFigures(self.box.pid, holding, self.rate(account, size))

    def rate(self, account: int, size: int) -> float | None:
        """Return how fast what the owners of an account hold has changed; None at the first look."""
        since, before = self._older
        passed = self._looked_at - since
        return (size - before.get(account, 0)) / passed if passed > 0 else None


class BoxWatcher:
    """The processes of some files, of which new ones are found, and those that are over are left.

    Args:
        find: returns the paths of files that may be those of processes that run.
        clock: seconds.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        find: Callable[[], Iterable[str]],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._find = find
        self._clock, self._wall = clock, wall
        self._scanned_at: float | None = None
        self._watched: dict[str, WatchedProcess] = {}
        self._dead: set[str] = set()

    def update(self) -> None:
        """Look at all files; at the folder once in a second."""
        now = self._clock()
        if self._scanned_at is None or now - self._scanned_at >= _SCAN_S:
            self._scanned_at = now
            self._scan()
        for path, process in list(self._watched.items()):
            with suppress(OSError):
                process.update()
            if process.is_over:
                self._watched.pop(path).box.close()
                self._dead.add(path)

    def processes(self) -> list[ProcessFigures]:
        """Return the figures of the processes, those that use most first."""
        found = [process.figures() for process in self._watched.values()]
        return sorted(found, key=lambda each: (each.state != "alive", -(each.resident_bytes or 0), each.pid))

    def owners(self, order: Order, most: int) -> list[OwnerFigures]:
        """Return the first owners of all processes, in an order."""
        found = [(process, *pair) for process in self._watched.values() for pair in process.first(order, most)]
        if order == "live":
            found = nlargest(most, found, key=itemgetter(2))
        elif order == "rate":
            found = nlargest(most, found, key=lambda each: (each[0].rate(*each[1:]) or 0.0, each[2]))
        else:
            found = nsmallest(most, found, key=lambda each: (each[0].box.path_of(each[1]), each[0].box.pid))
        return [process.owner(account, size) for process, account, size in found]

    def close(self) -> None:
        """Close the files."""
        for process in self._watched.values():
            process.box.close()
        self._watched.clear()

    def _scan(self) -> None:
        try:
            paths = set(self._find())
        except OSError:  # the folder has gone; the files that are open are still there
            return
        self._dead &= paths
        for path in paths - self._dead - self._watched.keys():
            self._open(path)

    def _open(self, path: str) -> None:
        try:
            box = LiveBox(path)
        except FileNotFoundError:
            return
        except (OSError, ValueError):  # any file may be there, and those of other users
            self._dead.add(path)
            return
        if _is_alive(box):
            self._watched[path] = WatchedProcess(box, self._clock, self._wall)
        else:
            box.close()
            self._dead.add(path)


def _is_alive(box: LiveBox) -> bool:
    try:
        return box.state() == "alive"
    except OSError:
        return False


def resident_rate(readings: Sequence[PastReading]) -> float | None:
    """Return how fast resident memory has changed in the last half minute; None of fewer than two readings."""
    last = readings[-1] if readings else None
    if last is None:
        return None
    first = next(reading for reading in readings if last.monotonic_s - reading.monotonic_s <= _RATE_S)
    passed = last.monotonic_s - first.monotonic_s
    return (last.resident_bytes - first.resident_bytes) / passed if passed > 0 else None


def seconds_to_limit(readings: Sequence[PastReading]) -> float | None:
    """Return the seconds until the limit is reached, by the floors of the readings; None where these do not rise."""
    limit = readings[-1].limit_bytes if readings else None
    level = _level(readings)
    return forecast([level], limit).seconds_to_limit if limit and level is not None else None


@record
class _Level:
    """Floors and peaks of blocks of equal length, as a forecast takes them."""

    block_s: float
    unsettled: int
    floors: list[float]
    peaks: list[float]


def _level(readings: Sequence[PastReading]) -> _Level | None:
    times = [reading.monotonic_s for reading in readings]
    span_s = times[-1] - times[0] if times else 0.0
    usual_s = median([later - earlier for earlier, later in pairwise(times)]) if len(times) > 1 else 0.0
    if span_s < _MIN_FORECAST_S or usual_s <= 0:
        return None
    number = min(_MAX_FLOORS, round(span_s / usual_s))
    if number < _MIN_FLOORS:
        return None
    block_s = span_s / number
    blocks: list[list[int]] = [[] for _ in range(number)]
    for reading, at_s in zip(readings, times, strict=True):
        blocks[min(int((at_s - times[0]) / block_s), number - 1)].append(reading.resident_bytes)
    for place in range(1, number):
        blocks[place] = blocks[place] or blocks[place - 1]  # in a block without readings nothing is known to change
    return _Level(block_s, 0, [float(min(block)) for block in blocks], [float(max(block)) for block in blocks])
