"""Which line was it? The door to memory_profiler, which looks at the resident memory after every line.

Covers: following the calls of one function, line by line, and adding them up.
Leaves to others: what it costs, and what the figures mean (`memory_profiler` itself): `pip install 'memtools[lines]'`.

Traps of memory_profiler: it follows by `sys.settrace`, in the thread that came first, and counts who is inside without
a lock: with two threads the trace function of the one is never taken back. So one call is followed at a time. It keeps
the highest memory of each line for good, and takes the growth of the next line from there: so it begins anew with each
call. The first line of a call seems to grow by all that is resident.
"""

import inspect
import linecache
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from types import CodeType
from typing import Any, Final

from memtools._records import record
from memtools.errors import ConfigError, MissingExtraError
from memtools.units import format_size

# What the lines of one function did to the process's memory, in bounded space, and how that reads.
#
# Leaves to others: watching the lines (`memory_profiler`).


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
        self._totals: dict[int, tuple[int, int, int]] = {}

    @property
    def calls(self) -> int:
        """How many calls were followed."""
        return self._calls

    def add(self, lines: Iterable[tuple[int, int, int, int]]) -> None:
        """Add a call: number of the line, how often it was run, growth and resident memory in bytes."""
        with self._lock:
            self._calls += 1
            for number, hits, grown, resident in lines:
                before = self._totals.get(number, (0, 0, 0))
                self._totals[number] = (before[0] + hits, before[1] + grown, max(before[2], resident))

    def rows(self) -> tuple[LineMemory, ...]:
        """Return the lines that were run, in their order."""
        with self._lock:
            seen = sorted(self._totals.items())
        return tuple(
            LineMemory(number, linecache.getline(self.filename, number).rstrip(), *figures) for number, figures in seen
        )

    def clear(self) -> None:
        """Forget what was seen."""
        with self._lock:
            self._calls = 0
            self._totals.clear()

    def __str__(self) -> str:
        head = f"{'line':>6}  {'hits':>8}  {'grown':>10}  {'resident':>10}"
        lines = [
            f"{row.number:>6}  {row.hits:>8,}  {format_size(row.grown_bytes):>10}  "
            f"{format_size(row.resident_bytes):>10}  {row.text}"
            for row in self.rows()
        ]
        return "\n".join((f"{self.filename}, {self._calls:,} calls", head, *lines))

    def __repr__(self) -> str:
        return f"<FunctionLines {self.filename} calls={self._calls} lines={len(self._totals)}>"


_MIB: Final = 2**20  # the unit of memory_profiler


class LineProfilerAdapter:
    """Follows calls of one plain function.

    Args:
        function: the function.

    Raises:
        MissingExtraError: when memory_profiler is not installed.
        ConfigError: for a function whose source cannot be read.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._code = _code_of(function)
        try:
            # By its name: to some tools `import memory_profiler` would mean this very file.
            library: Any = import_module("memory_profiler")  # it has no types of its own
        except ImportError:
            raise MissingExtraError("memory_profiler", "lines") from None
        self._profiler: Any = library.LineProfiler(backend="psutil")
        self._profiler.code_map.add(self._code)
        self._lock = threading.Lock()
        self.lines: FunctionLines = FunctionLines(self._code.co_filename)

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function`, and follow its lines unless another call is being followed."""
        if not self._lock.acquire(blocking=False):
            return function(*args, **kwargs)
        try:
            with self._profiler:
                return function(*args, **kwargs)
        finally:
            self.lines.add(self._collect())
            self._restart()
            self._lock.release()

    def _collect(self) -> Iterator[tuple[int, int, int, int]]:
        for _, lines in self._profiler.code_map.items():  # noqa: PERF102  # no dict in this respect
            for number, seen in lines:
                if seen is None:
                    continue
                grown, resident, hits = seen
                if number == self._code.co_firstlineno:
                    grown = 0.0
                yield number, hits, round(grown * _MIB), round(resident * _MIB)

    def _restart(self) -> None:
        for measures in self._profiler.code_map.values():
            measures.clear()
        self._profiler.prevlines.clear()
        self._profiler.prev_lineno = None


def _code_of(function: Callable[..., Any]) -> CodeType:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not isinstance(code, CodeType) or not os.path.exists(code.co_filename):
        raise ConfigError("function", function, "a function of a file that can be read, where lines=True")
    return code
