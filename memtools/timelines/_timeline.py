"""The timeline of a process: resident memory, Python's blocks, owners and events, in constant memory."""

import json
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, cast

from memtools._forks import register_object_after_fork
from memtools._records import as_dict, record
from memtools._text import printable
from memtools.errors import ConfigError
from memtools.timelines._recording import Recording
from memtools.timelines._samples import UNKNOWN, WIDTH, Row, Sample, SampleSeries, to_sample
from memtools.units import format_size

PathName: TypeAlias = str | os.PathLike[str]

MAX_EVENTS_OF_A_KIND: Final = 128  # a flood of collections must not push out the one deploy
MAX_KINDS: Final = 16
MAX_OWNERS: Final = 32
MAX_POINTS: Final = 256
_MAX_TEXT: Final = 200  # characters of an event
_MAX_NAME: Final = 120  # characters of a kind or of an owner
_MAX_BYTES: Final = 2**53
_MAX_PENDING: Final = 1_000
_FORMAT: Final = "memtools timeline"
_VERSION: Final = 1
_OTHER: Final = "other"


@record
class TimelineEvent:
    """Something that happened between the readings.

    Attributes:
        at_s: when, in seconds since the epoch.
        kind: `"collection"`, `"cleanup"`, `"alarm"`, `"deploy"`, `"scope"`, `"limit"`, or a word of the program's own.
        text: what happened, in one line; printable.
    """

    at_s: float
    kind: str
    text: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


def replace_file(target: Path, lines: Iterable[str], *, waits_for_disk: bool) -> None:
    """Write lines into a file, which is replaced as a whole, or not at all.

    Args:
        target: the file.
        lines: what it holds from then on.
        waits_for_disk: whether the lines are on the disk before it is replaced, which may take long.

    Raises:
        OSError: when it cannot be written; what it held before stays.
    """
    new = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with open(new, "x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            if waits_for_disk:
                file.flush()
                os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


class Timeline:
    """What a process used over hours, days and weeks, in constant memory.

    ```python
    from memtools.timelines import Timeline

    timeline = Timeline(limit_bytes=512 << 20)
    for second in range(3):
        timeline.add((100 + second) << 20, at_s=1_800_000_000.0 + second)
    timeline.mark("deploy", "version 1.4.2", at_s=1_800_000_003.0)
    assert [sample.count for sample in timeline.samples] == [1, 1, 1]
    ```

    A started monitor has one and adds what it samples: `monitor.timeline`. Without a monitor, `record()` samples:

    ```python
    with Timeline().record(interval=0.01) as timeline:
        data = [bytes(1000) for _ in range(1000)]
    assert timeline.samples
    ```

    The last 720 readings are kept whole, older ones as one row a minute for a week, a quarter of an hour for four weeks
    and a quarter of a day for a year; then the oldest rows are merged by pairs. No reading is dropped: counts, minima,
    maxima and means stay what they were. That takes at most 0.9 MiB, the points of all owners 0.15 MiB, and an event
    some 300 bytes.

    Args:
        limit_bytes: what the process may use; None if unknown. `add` may tell another one later.

    Raises:
        ConfigError: for a limit that is no number of bytes.

    Threads: every method may be called from any thread, from finalisers and from signal handlers. Cost: `add` takes
    some 3 us; `samples` makes a record for each row, 20 ms for a week.
    """

    def __init__(self, *, limit_bytes: int | None = None) -> None:
        self._limit_bytes = None if limit_bytes is None else _parse_bytes(limit_bytes, "limit_bytes")
        self._lock = threading.RLock()
        self._is_draining = False
        # Readings wait here while another thread, or the code that a finaliser has interrupted, is at work on the rows.
        self._pending: deque[Row] = deque(maxlen=_MAX_PENDING)
        self._series = SampleSeries()
        self._events: dict[str, deque[TimelineEvent]] = {}
        self._owners: dict[str, OwnerPoints] = {}
        register_object_after_fork(self, Timeline._renew_lock)

    @property
    def limit_bytes(self) -> int | None:
        """What the process may use, by the newest reading that told; None if unknown."""
        return self._limit_bytes

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The readings, oldest first: recent ones whole, older ones merged."""
        return tuple([to_sample(row) for _, row in self._rows()])

    @property
    def events(self) -> tuple[TimelineEvent, ...]:
        """The events, oldest first: the last 128 of each kind."""
        by_kind = [list(events) for events in list(self._events.values())]
        return tuple(sorted((event for events in by_kind for event in events), key=lambda event: event.at_s))

    @property
    def owners(self) -> dict[str, tuple[tuple[float, int], ...]]:
        """Live bytes of each account over time, as (seconds since the epoch, bytes); the largest 32 accounts.

        Each point is the lowest figure of its interval; the intervals of an account double when it has 256 points.
        """
        with self._lock:
            return {name: points.points() for name, points in self._owners.items()}

    def add(
        self,
        used_bytes: int,
        *,
        blocks: int | None = None,
        at_s: float | None = None,
        limit_bytes: int | None = None,
    ) -> None:
        """Add the newest reading.

        Args:
            used_bytes: resident memory.
            blocks: `sys.getallocatedblocks()`; None if unknown.
            at_s: when, in seconds since the epoch; by default now. A time before that of the last reading, since a
                clock was set back, counts as the same time.
            limit_bytes: what the process may use; None where that has not changed. A change is an event.

        Raises:
            ConfigError: for a figure that is negative, not finite or above 2**53; nothing is added then.
        """
        used = _parse_bytes(used_bytes, "used_bytes")
        now = time.time() if at_s is None else _parse_time(at_s)
        if limit_bytes is not None and limit_bytes != self._limit_bytes:
            self._change_limit(_parse_bytes(limit_bytes, "limit_bytes"), now)
        fewest = UNKNOWN if blocks is None else float(_parse_bytes(blocks, "blocks"))
        self._pending.append((now, 0.0, 1.0, used, used, used, fewest))
        self._drain(wait=False)

    def add_owners(self, live_bytes: Mapping[str, int], *, at_s: float | None = None) -> None:
        """Add the live bytes of accounts, by name; more than the 32 largest are not kept.

        Raises:
            ConfigError: for a figure or a time that is not finite; nothing is added then.
        """
        now = time.time() if at_s is None else _parse_time(at_s)
        checked = {
            printable(str(name), _MAX_NAME): _parse_bytes(max(0, live), "live_bytes")
            for name, live in live_bytes.items()
        }
        with self._lock:
            for name in sorted(checked, key=checked.__getitem__, reverse=True)[:MAX_OWNERS]:
                points = self._owners.get(name) or self._make_room(name, checked[name])
                if points is not None:
                    points.add(now, int(checked[name]))

    def mark(self, kind: str, text: str = "", *, at_s: float | None = None) -> None:
        """Add an event; the trend looks for deploys, after which memory does not come back.

        Args:
            kind: a word such as `"deploy"`; from the 17th kind on all are `"other"`.
            text: what happened; cut at 200 characters, and made printable.
            at_s: when, in seconds since the epoch; by default now.

        Raises:
            ConfigError: for an empty kind, or a time that is not finite.
        """
        word = printable(str(kind).strip(), _MAX_NAME)
        if not word:
            raise ConfigError("kind", kind, "a word such as 'deploy'")
        now = time.time() if at_s is None else _parse_time(at_s)
        if word not in self._events and len(self._events) >= MAX_KINDS:
            word = _OTHER
        # Each is one step of the interpreter: no lock, since a finaliser or a signal handler may come in between.
        events = self._events.setdefault(word, deque(maxlen=MAX_EVENTS_OF_A_KIND))
        events.append(TimelineEvent(now, word, printable(str(text), _MAX_TEXT)))

    def record(self, *, interval: float = 5.0) -> Recording[Self]:
        """Sample this process every `interval` seconds in a `with` block (a thread) or an `async with` block (a task).

        The block gets the timeline. Clean-ups, changes of level, scopes and full collections in it become events. A
        started monitor samples already: use its `timeline`.

        Raises:
            ConfigError: for an interval that is not above 0.
        """
        return Recording(self, interval)

    def save(self, path: PathName) -> None:
        """Write everything into a file of JSON lines; the file is replaced as a whole, or not at all.

        Raises:
            OSError: when it cannot be written; what it held before stays.
        """
        lines = (json.dumps(line, separators=(",", ":")) for line in self._lines())
        replace_file(Path(path), lines, waits_for_disk=True)

    @classmethod
    def load(cls, path: PathName) -> Self:
        """Return the timeline that was saved in a file; of a truncated file, all up to its last whole line.

        Raises:
            ConfigError: for a file that is something else, or of a later version.
            OSError: when it cannot be read.
        """
        timeline = cls()
        with open(path, "rb") as file:
            lines = _whole_lines(file)
            head = next(lines, None)
            if head is None:
                file.seek(0)
                if not _is_cut_head(file.read(200)):
                    raise ConfigError("path", os.fspath(path), "a file that Timeline.save() has written")
                return timeline
            if not _is_head(head):
                raise ConfigError("path", os.fspath(path), f"a file of {_FORMAT!r}, version {_VERSION}")
            timeline._limit_bytes = _restored_limit(head)
            for line in lines:
                if not timeline._restore(line):
                    break
        return timeline

    def to_csv(self) -> str:
        """Return the samples as CSV (RFC 4180): a line of the names of the fields, and a line for each sample."""
        lines = [",".join(Sample.__match_args__)]
        for sample in self.samples:
            values = (getattr(sample, name) for name in Sample.__match_args__)
            lines.append(",".join("" if value is None else str(value) for value in values))
        return "\r\n".join([*lines, ""])

    def __repr__(self) -> str:
        limit = "no limit known" if self._limit_bytes is None else f"limit {format_size(self._limit_bytes)}"
        return f"<Timeline {sum(1 for _ in self._rows()):,} samples, {limit}>"

    def _rows(self) -> list[tuple[int, Row]]:
        with self._lock:
            self._drain(wait=True)
            return list(self._series.rows())

    def _drain(self, *, wait: bool) -> None:
        lock = self._lock  # another one, if this process is forked in the middle
        if not lock.acquire(blocking=wait):
            return
        try:
            if self._is_draining:  # a finaliser, or a signal handler, in the middle of it: the rows follow below
                return
            self._is_draining = True
            try:
                while self._pending:
                    self._add_row(self._pending.popleft())
            finally:
                self._is_draining = False
        finally:
            lock.release()

    def _add_row(self, row: Row) -> None:
        last_at_s = self._series.last_at_s
        if last_at_s is not None and row[0] < last_at_s:
            row = (last_at_s, *row[1:])
        self._series.add(row)

    def _change_limit(self, limit_bytes: int, now: float) -> None:
        before, self._limit_bytes = self._limit_bytes, int(limit_bytes)
        if before is not None:
            self.mark("limit", f"the limit changed from {format_size(before)} to {format_size(limit_bytes)}", at_s=now)

    def _make_room(self, name: str, live_bytes: int) -> "OwnerPoints | None":
        if len(self._owners) >= MAX_OWNERS:
            smallest = min(self._owners, key=lambda other: self._owners[other].last_bytes)
            if self._owners[smallest].last_bytes >= live_bytes:
                return None
            del self._owners[smallest]
        self._owners[name] = points = OwnerPoints()
        return points

    def _lines(self) -> Iterator[object]:
        yield {"format": _FORMAT, "version": _VERSION, "limit_bytes": self._limit_bytes}
        for tier, row in self._rows():
            yield ["sample", tier, *row]
        for event in self.events:
            yield ["event", event.at_s, event.kind, event.text]
        for name, points in self.owners.items():
            yield ["owner", name, *points]

    def _restore(self, line: Any) -> bool:  # Any: JSON of anything; the return value says whether it was understood
        kind, *figures = _as_list(line) or [None]
        if kind == "sample" and _is_row(figures):
            self._series.restore(figures[0], cast("Row", tuple(float(figure) for figure in figures[1:])))
        elif kind == "event" and _is_event(figures):
            at, word, text = figures
            self.mark(word, text, at_s=at)
        elif kind == "owner" and _is_owner(figures):
            name, *points = figures
            for at, live in points:
                self.add_owners({name: live}, at_s=at)
        else:
            return False
        return True

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()
        self._is_draining = False


class OwnerPoints:
    """Live bytes of one account over time, in constant memory: each point is the lowest of its interval."""

    __slots__ = ("_at", "_live", "_width_s")

    def __init__(self) -> None:
        self._at = array("d")
        self._live = array("q")
        self._width_s = 0.0

    @property
    def last_bytes(self) -> int:
        """The newest point."""
        return self._live[-1] if self._live else 0

    def add(self, at_s: float, live_bytes: int) -> None:
        """Add the newest figure."""
        if self._at and at_s - self._at[-1] < self._width_s:
            self._live[-1] = min(self._live[-1], live_bytes)
            return
        self._at.append(max(at_s, self._at[-1]) if self._at else at_s)
        self._live.append(int(live_bytes))
        if len(self._at) > MAX_POINTS:
            self._halve()

    def points(self) -> tuple[tuple[float, int], ...]:
        """Return the points, oldest first."""
        return tuple(zip(self._at, self._live, strict=True))

    def _halve(self) -> None:
        self._live = array("q", [min(self._live[place : place + 2]) for place in range(0, len(self._live), 2)])
        self._at = self._at[::2]
        self._width_s = 2 * (self._at[-1] - self._at[0]) / MAX_POINTS


def _whole_lines(file: Any) -> Iterator[Any]:
    # Any: JSON of anything. A line that has no end, or is no JSON, is where the file was truncated or torn.
    for line in file:
        if not line.endswith(b"\n"):
            return
        try:
            yield json.loads(line)
        except ValueError:
            return


def _is_head(head: Any) -> bool:
    if not isinstance(head, dict):
        return False
    fields = cast("dict[str, Any]", head)
    return (fields.get("format"), fields.get("version")) == (_FORMAT, _VERSION)


def _is_cut_head(text: bytes) -> bool:
    head = json.dumps({"format": _FORMAT, "version": _VERSION}, separators=(",", ":"))[:-1].encode()
    return head.startswith(text) or text.startswith(head)


def _restored_limit(head: Mapping[str, object]) -> int | None:
    limit = head.get("limit_bytes")
    return limit if isinstance(limit, int) and not isinstance(limit, bool) and 0 <= limit < _MAX_BYTES else None


def _is_row(figures: list[Any]) -> bool:
    if len(figures) != 1 + WIDTH or not isinstance(figures[0], int) or not all(map(_is_figure, figures)):
        return False
    _, _, duration_s, number, lowest, mean, highest, blocks = figures
    return bool(duration_s >= 0 and number >= 1 and 0 <= lowest <= mean <= highest < _MAX_BYTES and blocks >= UNKNOWN)


def _is_event(figures: list[Any]) -> bool:
    if len(figures) != 3 or not _is_figure(figures[0]):
        return False
    return all(isinstance(text, str) for text in figures[1:]) and bool(figures[1].strip())


def _is_owner(figures: list[Any]) -> bool:
    return bool(figures) and isinstance(figures[0], str) and all(map(_is_point, figures[1:]))


def _is_point(point: Any) -> bool:
    pair = _as_list(point)
    return len(pair) == 2 and all(map(_is_figure, pair)) and 0 <= pair[1] < _MAX_BYTES


def _as_list(value: object) -> list[Any]:
    return list(cast("Iterable[Any]", value)) if isinstance(value, list) else []


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _parse_bytes(value: int, name: str) -> int:
    if isinstance(value, bool) or not 0 <= value < _MAX_BYTES:  # nan fails every comparison
        raise ConfigError(name, value, "a whole number from 0 to 2**53")
    return value


def _parse_time(at_s: float) -> float:
    if not _is_figure(at_s):
        raise ConfigError("at_s", at_s, "seconds since the epoch, as a finite number")
    return float(at_s)
