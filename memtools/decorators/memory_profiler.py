"""Line-by-line memory of plain functions, measured by memory_profiler (extra `lines`).

memory_profiler reads the resident memory of the process after every line. Its traps, which decide how it is used here:

- It traces with `sys.settrace` in the thread that came first, and counts the running calls without a lock: with two
  threads, the trace function of one of them is never removed. So one call is measured at a time.
- It keeps the highest memory of each line, and computes the growth of the next line from it. So it is reset after each
  call.
- The first line of a call seems to grow by all resident memory. So its growth is set to 0.
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

_MIB: Final = 2**20  # the unit of memory_profiler


@record
class LineMemory:
    """One line of a function.

    Attributes:
        number: its number in the file.
        text: the line.
        hits: how often it was run.
        grown_bytes: the growth of the process's resident memory over the line, summed over all runs.
        resident_bytes: the highest resident memory after the line.
    """

    number: int
    text: str
    hits: int
    grown_bytes: int
    resident_bytes: int


class FunctionLines:
    """The lines of one function, in bounded space: `f.memory.lines`. Thread-safe.

    Args:
        filename: the file of the function.
    """

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self._lock = threading.Lock()
        self._calls = 0
        self._totals: dict[int, tuple[int, int, int]] = {}

    @property
    def calls(self) -> int:
        """How many calls were measured line by line."""
        return self._calls

    def add(self, lines: Iterable[tuple[int, int, int, int]]) -> None:
        """Add a call.

        Args:
            lines: number of the line, how often it was run, growth and resident memory in bytes, of each line.
        """
        with self._lock:
            self._calls += 1
            for number, hits, grown, resident in lines:
                before = self._totals.get(number, (0, 0, 0))
                self._totals[number] = (before[0] + hits, before[1] + grown, max(before[2], resident))

    def rows(self) -> tuple[LineMemory, ...]:
        """Return the lines that were run, in their order."""
        with self._lock:
            totals = sorted(self._totals.items())
        return tuple(
            LineMemory(number, linecache.getline(self.filename, number).rstrip(), *figures)
            for number, figures in totals
        )

    def clear(self) -> None:
        """Forget all calls."""
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


class LineProfilerAdapter:
    """Measures calls of one plain function line by line.

    Raises:
        MissingExtraError: when memory_profiler is not installed.
        ConfigError: for a function whose source cannot be read.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._code = _code_of(function)
        try:
            # By its name: some tools take `import memory_profiler` for this file.
            library: Any = import_module("memory_profiler")  # it has no type annotations
        except ImportError:
            raise MissingExtraError("memory_profiler", "lines") from None
        self._profiler: Any = library.LineProfiler(backend="psutil")
        self._profiler.code_map.add(self._code)
        self._lock = threading.Lock()
        self.lines: FunctionLines = FunctionLines(self._code.co_filename)

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function`, line by line unless another call is being measured."""
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
        for _, lines in self._profiler.code_map.items():  # noqa: PERF102  # its values() do not have the line numbers
            for number, measured in lines:
                if measured is None:
                    continue
                grown, resident, hits = measured
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
        raise ConfigError("function", function, "a function whose source file can be read, with lines=True")
    return code
