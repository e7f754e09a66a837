"""What the lines of one function did to the process's memory, in bounded space, and how that reads.

Leaves to others: watching the lines (`memory_profiler`).
"""

import linecache
import threading
from collections.abc import Iterable

from memtools.records import record
from memtools.units import format_size


@record
class LineMemory:
    """One line of a function.

    Attributes:
        number: its number in the file.
        text: what stands there.
        hits: how often it was run.
        grown_bytes: by how much the resident memory of the process was higher after it than before, added up.
        resident_bytes: the most that was resident after it.
    """

    number: int
    text: str
    hits: int
    grown_bytes: int
    resident_bytes: int


class FunctionLines:
    """The lines of one function: `f.memory.lines`. Safe from any thread.

    Args:
        filename: where the function stands.
    """

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self._lock = threading.Lock()
        self._calls = 0
        self._seen: dict[int, tuple[int, int, int]] = {}

    @property
    def calls(self) -> int:
        """How many calls were followed."""
        return self._calls

    def add(self, lines: Iterable[tuple[int, int, int, int]]) -> None:
        """Add a call: number of the line, how often it was run, growth and resident memory in bytes."""
        with self._lock:
            self._calls += 1
            for number, hits, grown, resident in lines:
                before = self._seen.get(number, (0, 0, 0))
                self._seen[number] = (before[0] + hits, before[1] + grown, max(before[2], resident))

    def rows(self) -> tuple[LineMemory, ...]:
        """Return the lines that were run, in their order."""
        with self._lock:
            seen = sorted(self._seen.items())
        return tuple(
            LineMemory(number, linecache.getline(self.filename, number).rstrip(), *figures) for number, figures in seen
        )

    def clear(self) -> None:
        """Forget what was seen."""
        with self._lock:
            self._calls = 0
            self._seen.clear()

    def __str__(self) -> str:
        head = f"{'line':>6}  {'hits':>8}  {'grown':>10}  {'resident':>10}"
        lines = [
            f"{row.number:>6}  {row.hits:>8,}  {format_size(row.grown_bytes):>10}  "
            f"{format_size(row.resident_bytes):>10}  {row.text}"
            for row in self.rows()
        ]
        return "\n".join((f"{self.filename}, {self._calls:,} calls", head, *lines))

    def __repr__(self) -> str:
        return f"<FunctionLines {self.filename} calls={self._calls} lines={len(self._seen)}>"
