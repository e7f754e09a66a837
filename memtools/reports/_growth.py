"""What happened to the process as a whole, and what of it is nobody's.

Leaves to others: the readings themselves (`memtools.readings`), the meters' sums (`memtools.ledger`).
"""

import sys

from memtools.ledger import Entry, LedgerStatistics
from memtools.readings import ProcessMemory
from memtools.records import as_dict, record


@record
class Growth:
    """The process between a first and a last reading, in bytes; None where it cannot be known.

    Attributes:
        resident_bytes: resident memory at the last reading.
        peak_bytes: the most that ever was resident in this process.
        resident_growth_bytes: change since the first reading; None without one.
        owned_bytes: what the owners hold together, as the native meter knows it, or else the traced one; None without
            either.
        nobody_bytes: bytes that were added while nobody had the turn, by the same meter.
        meter_bytes: what tracemalloc needs for its own tables; None with the native meter, which does not know it of
            itself.
        unattributed_bytes: growth that none of these explains: C libraries, fragments, interpreter, the native meter.
    """

    resident_bytes: int
    peak_bytes: int
    resident_growth_bytes: int | None = None
    owned_bytes: int | None = None
    nobody_bytes: int | None = None
    meter_bytes: int | None = None
    unattributed_bytes: int | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


def measure_growth(ledger: LedgerStatistics, now: ProcessMemory, since: ProcessMemory | None) -> Growth:
    """Return the whole process's figures beside what the ledger explains of them."""
    growth = now.resident_bytes - since.resident_bytes if since is not None else None
    meter = next((name for name in ("native", "traced") if any(entry.meter == name for entry in ledger.accounts)), None)
    if meter is None:
        return Growth(now.resident_bytes, now.peak_bytes, growth)

    owned = sum(_held(entry) for entry in ledger.accounts if entry.meter == meter)
    nobody = ledger.unattributed_bytes.get(meter, 0)
    tables = _tracemalloc_bytes() if meter == "traced" else None
    unattributed = growth - owned - nobody - (tables or 0) if growth is not None else None
    return Growth(now.resident_bytes, now.peak_bytes, growth, owned, nobody, tables, unattributed)


def _held(entry: Entry) -> int:
    return entry.retained_bytes if entry.live_bytes is None else entry.live_bytes


def _tracemalloc_bytes() -> int:
    tracemalloc = sys.modules.get("tracemalloc")
    return tracemalloc.get_tracemalloc_memory() if tracemalloc is not None and tracemalloc.is_tracing() else 0
