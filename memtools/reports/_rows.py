"""The rows of a report, and the growth of the process."""

import sys
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from memtools._records import as_dict, record
from memtools.analysis import Leftover
from memtools.ledger import AccountStatistics
from memtools.ledger._ledger import LedgerStatistics
from memtools.readings import ProcessMemory, ResidentPart, ResidentSplit
from memtools.readings._resident import MALLOC_BLOCKS, PYTHON_BLOCKS

# What the tables show of a size, hundredths of a MiB. Rows whose sizes look equal are sorted by their peaks.
_SHOWN: Final = 2**20 / 100


@record
class Growth:
    """The process between a first and a last reading, in bytes; None where it cannot be known.

    Attributes:
        resident_bytes: resident memory at the last reading.
        peak_bytes: the highest resident memory of this process.
        resident_growth_bytes: change since the first reading; None without one.
        owned_bytes: what the owners hold together, by the native meter, or else by tracemalloc; None without either.
        untracked_bytes: bytes that were allocated outside any scope, by the same meter.
        meter_bytes: the size of tracemalloc's own tables; None with the native meter, which does not count its own.
        unattributed_bytes: growth that none of these explains: C libraries, fragmentation, interpreter, native meter.
        parts: what that growth consists of, the largest first, each with its meaning; all growth where there is no
            meter. Empty without a first `split_resident()`.
    """

    resident_bytes: int
    peak_bytes: int
    resident_growth_bytes: int | None = None
    owned_bytes: int | None = None
    untracked_bytes: int | None = None
    meter_bytes: int | None = None
    unattributed_bytes: int | None = None
    parts: tuple[ResidentPart, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {**as_dict(self), "parts": [part.to_dict() for part in self.parts]}


def measure_growth(
    ledger: LedgerStatistics,
    now: ProcessMemory,
    since: ProcessMemory | None,
    split: ResidentSplit | None = None,
    split_since: ResidentSplit | None = None,
) -> Growth:
    """Return the figures of the whole process, the parts that the ledger explains, and those that it does not."""
    growth = now.resident_bytes - since.resident_bytes if since is not None else None
    meter = next(
        (name for name in ("native", "tracemalloc") if any(entry.meter == name for entry in ledger.accounts)), None
    )
    if meter is None:
        return Growth(now.resident_bytes, now.peak_bytes, growth, parts=_parts(split, split_since, None))

    owned = sum(_held_bytes(entry) for entry in ledger.accounts if entry.meter == meter)
    untracked = ledger.unattributed_bytes.get(meter, 0)
    tables = _tracemalloc_bytes() if meter == "tracemalloc" else None
    unattributed = growth - owned - untracked - (tables or 0) if growth is not None else None
    parts = _parts(split, split_since, owned + untracked + (tables or 0))
    return Growth(now.resident_bytes, now.peak_bytes, growth, owned, untracked, tables, unattributed, parts)


def _parts(
    split: ResidentSplit | None, since: ResidentSplit | None, explained_bytes: int | None
) -> tuple[ResidentPart, ...]:
    if split is None or since is None:
        return ()
    parts = split.parts(since)
    if explained_bytes is None:
        return parts
    # The ledger counts what Python has of its own blocks and of malloc: the rest of both is not Python's.
    in_use = (split.python_bytes or 0) + split.malloc_bytes - (since.python_bytes or 0) - since.malloc_bytes
    others = ResidentPart("C libraries", in_use - explained_bytes, "blocks of malloc that are no Python objects")
    kept = [others, *(part for part in parts if part.name not in (PYTHON_BLOCKS, MALLOC_BLOCKS))]
    return tuple(sorted(kept, key=lambda part: part.size_bytes, reverse=True))


def _held_bytes(entry: AccountStatistics) -> int:
    return entry.retained_bytes if entry.live_bytes is None else entry.live_bytes


def _tracemalloc_bytes() -> int:
    tracemalloc = sys.modules.get("tracemalloc")
    return tracemalloc.get_tracemalloc_memory() if tracemalloc is not None and tracemalloc.is_tracing() else 0


@record
class Row:
    """The owners of one name together.

    Attributes:
        name: the owners' name, as it was given: escape it before it is shown.
        calls: how many were opened.
        active: how many of them are still open.
        failed: how many ended with an exception.
        peak_bytes: the highest peak of one of them.
        retained_bytes: the sum of what they left alive, and of what the open ones hold.
        duration_s: the sum of their wall times, in seconds.
        meters: the names of the meters that counted.
        notes: why the figures are not exact; empty when they are.
        children: scopes inside this one; empty for tasks and functions.
        live_bytes: what they, and their children, allocated and is alive now, whether they have ended or not; None
            where the meter does not know.
        live_after_end_bytes: the part of it that ended ones have left.
    """

    name: str
    calls: int
    active: int
    failed: int
    peak_bytes: int
    retained_bytes: int
    duration_s: float
    meters: tuple[str, ...]
    notes: tuple[str, ...]
    children: "tuple[Row, ...]" = ()
    live_bytes: int | None = None
    live_after_end_bytes: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the figures contain only bytes of these owners."""
        return not self.notes

    def walk(self, depth: int = 0) -> "Iterator[tuple[int, Row]]":
        """Yield this row and all below it with their depth, parents first."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)

    def to_dict(self) -> dict[str, object]:
        """Return the row as a dict that JSON can hold; `children` only where there are some."""
        fields: dict[str, object] = {
            "name": self.name,
            "calls": self.calls,
            "active": self.active,
            "failed": self.failed,
            "peak_bytes": self.peak_bytes,
            "retained_bytes": self.retained_bytes,
            "live_bytes": self.live_bytes,
            "live_after_end_bytes": self.live_after_end_bytes,
            "duration_s": self.duration_s,
            "exact": self.exact,
            "meters": list(self.meters),
            "notes": list(self.notes),
        }
        if self.children:
            fields["children"] = [child.to_dict() for child in self.children]
        return fields


class ReportFields(Protocol):
    """What the text and the HTML of a report are made from."""

    @property
    def title(self) -> str:
        """What the report is about."""
        ...

    @property
    def sections(self) -> tuple[tuple[str, tuple[tuple[int, Row], ...]], ...]:
        """The three views with their headings: pairs of depth and row, parents first."""
        ...

    @property
    def peak_bytes(self) -> int:
        """The highest peak of all rows: the 100% of the bars."""
        ...

    @property
    def meters(self) -> tuple[str, ...]:
        """The names of the meters."""
        ...

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences on what the figures do not cover."""
        ...

    @property
    def notes(self) -> dict[str, int]:
        """Why figures are not exact, each with its number of rows."""
        ...

    @property
    def process(self) -> Growth:
        """The process as a whole."""
        ...

    @property
    def leftovers(self) -> tuple[Leftover, ...]:
        """The functions and tasks whose every call leaves something behind."""
        ...


def scope_rows(accounts: Iterable[AccountStatistics]) -> tuple[Row, ...]:
    """Return the tree of scopes. Tasks and calls between two scopes are skipped, equal paths are added up."""
    by_name: dict[str, list[AccountStatistics]] = {}
    for entry in _nearest_scopes(accounts):
        by_name.setdefault(entry.name, []).append(entry)

    rows = (
        _sum_rows(name, same, scope_rows(child for entry in same for child in entry.children))
        for name, same in by_name.items()
    )
    return _by_size(rows)


def flat_rows(accounts: Iterable[AccountStatistics], kind: str) -> tuple[Row, ...]:
    """Return one row per name of that kind (`"task"`, `"call"`), from anywhere in the tree."""
    by_name: dict[str, list[AccountStatistics]] = {}
    for entry in _walk(accounts):
        if entry.kind == kind:
            by_name.setdefault(entry.name, []).append(entry)
    return _by_size(_sum_rows(name, same) for name, same in by_name.items())


def notes_of(rows: Iterable[Row]) -> dict[str, int]:
    """Return why figures are not exact, each with its number of rows."""
    counts: dict[str, int] = {}
    for row in rows:
        for note in row.notes:
            counts[note] = counts.get(note, 0) + 1
    return counts


def _nearest_scopes(accounts: Iterable[AccountStatistics]) -> Iterator[AccountStatistics]:
    for entry in accounts:
        if entry.kind == "scope":
            yield entry
        else:
            yield from _nearest_scopes(entry.children)


def _walk(accounts: Iterable[AccountStatistics]) -> Iterator[AccountStatistics]:
    # Not recursive: the tree may be 4,096 deep, beyond the recursion limit.
    pending = list(accounts)
    while pending:
        entry = pending.pop()
        yield entry
        pending.extend(entry.children)


def _sum_rows(name: str, entries: list[AccountStatistics], children: tuple[Row, ...] = ()) -> Row:
    return Row(
        name=name,
        calls=sum(entry.started for entry in entries),
        active=sum(entry.active for entry in entries),
        failed=sum(entry.failed for entry in entries),
        peak_bytes=max(entry.peak_bytes for entry in entries),
        retained_bytes=sum(entry.retained_bytes for entry in entries),
        duration_s=sum(entry.duration_s for entry in entries),
        meters=_distinct(entry.meter for entry in entries),
        notes=_distinct(entry.note for entry in entries),
        children=children,
        live_bytes=_known_sum(entry.live_bytes for entry in entries),
        live_after_end_bytes=_known_sum(entry.live_after_end_bytes for entry in entries),
    )


def _known_sum(sizes: Iterable[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, texts)))


def _by_size(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (-round((row.live_bytes or 0) / _SHOWN), -row.peak_bytes, row.name)))
