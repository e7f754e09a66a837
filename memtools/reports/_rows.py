"""Turn the ledger's tree of accounts into the three views of a report.

Covers: scopes as a tree of scopes, tasks by name and functions by name, each added up over all the places where they
were at work. Leaves to others: what an account holds (`memtools.ledger`), how a row is shown (`_text`, `_html`).
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Final

from memtools._records import as_dict, record
from memtools.ledger import AccountStatistics, LedgerStatistics
from memtools.readings import ProcessMemory

# What happened to the process as a whole, and what of it is nobody's.
#
# Leaves to others: the readings themselves (`memtools.readings`), the meters' sums (`memtools.ledger`).


@record
class Growth:
    """The process between a first and a last reading, in bytes; None where it cannot be known.

    Attributes:
        resident_bytes: resident memory at the last reading.
        peak_bytes: the most that ever was resident in this process.
        resident_growth_bytes: change since the first reading; None without one.
        owned_bytes: what the owners hold together, as the native meter knows it, or else the traced one; None without
            either.
        untracked_bytes: bytes that were added while nobody had the turn, by the same meter.
        meter_bytes: what tracemalloc needs for its own tables; None with the native meter, which does not know it of
            itself.
        unattributed_bytes: growth that none of these explains: C libraries, fragments, interpreter, the native meter.
    """

    resident_bytes: int
    peak_bytes: int
    resident_growth_bytes: int | None = None
    owned_bytes: int | None = None
    untracked_bytes: int | None = None
    meter_bytes: int | None = None
    unattributed_bytes: int | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


def measure_growth(ledger: LedgerStatistics, now: ProcessMemory, since: ProcessMemory | None) -> Growth:
    """Return the whole process's figures beside what the ledger explains of them."""
    growth = now.resident_bytes - since.resident_bytes if since is not None else None
    meter = next(
        (name for name in ("native", "tracemalloc") if any(entry.meter == name for entry in ledger.accounts)), None
    )
    if meter is None:
        return Growth(now.resident_bytes, now.peak_bytes, growth)

    owned = sum(_held(entry) for entry in ledger.accounts if entry.meter == meter)
    nobody = ledger.unattributed_bytes.get(meter, 0)
    tables = _tracemalloc_bytes() if meter == "tracemalloc" else None
    unattributed = growth - owned - nobody - (tables or 0) if growth is not None else None
    return Growth(now.resident_bytes, now.peak_bytes, growth, owned, nobody, tables, unattributed)


def _held(entry: AccountStatistics) -> int:
    return entry.retained_bytes if entry.live_bytes is None else entry.live_bytes


def _tracemalloc_bytes() -> int:
    tracemalloc = sys.modules.get("tracemalloc")
    return tracemalloc.get_tracemalloc_memory() if tracemalloc is not None and tracemalloc.is_tracing() else 0


# What the tables show of a size, hundredths of a MiB. Rows that hold the same to the eye go by their peaks.
_SHOWN: Final = 2**20 / 100


@record
class Row:
    """What the owners of one name used together.

    Attributes:
        name: the owners' name, as it was given: escape it before it is shown.
        calls: how many were opened.
        active: how many of them are still open.
        failed: how many ended with an exception.
        peak_bytes: the highest peak of one of them.
        retained_bytes: the sum of what they left alive, and of what the open ones hold.
        duration_s: the sum of their wall times, in seconds.
        meters: who counted.
        notes: why the figures are not exact; empty when they are.
        children: scopes inside this one; empty for tasks and functions.
        live_bytes: what of theirs, and of those below, is alive now, whether they have ended or not; None where the
            meter does not know.
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
        """Whether nobody else's bytes can be in the figures."""
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


def scope_rows(accounts: Iterable[AccountStatistics]) -> tuple[Row, ...]:
    """Return the tree of scopes. Tasks and calls between two scopes are passed through, equal paths added up."""
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
    """Return why figures are not exact, each with the number of rows that it stands for."""
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
    # A stack of our own: the tree may be 4,096 deep, beyond what Python lets a function call itself.
    waiting = list(accounts)
    while waiting:
        entry = waiting.pop()
        yield entry
        waiting.extend(entry.children)


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


def _distinct(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, words)))


def _by_size(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (-round((row.live_bytes or 0) / _SHOWN), -row.peak_bytes, row.name)))
