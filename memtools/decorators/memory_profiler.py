"""Which line was it? The door to memory_profiler, which looks at the resident memory after every line.

Covers: following the calls of one function, line by line, and adding them up.
Leaves to others: what it costs, and what the figures mean (`memory_profiler` itself): `pip install 'memtools[lines]'`.

Traps of memory_profiler: it follows by `sys.settrace`, in the thread that came first, and counts who is inside without
a lock: with two threads the trace function of the one is never taken back. So one call is followed at a time. It keeps
the highest memory of each line for good, and takes the growth of the next line from there: so it begins anew with each
call. The first line of a call seems to grow by all that is resident.
"""

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from types import CodeType
from typing import Any, Final

from memtools.decorators._line_memory import FunctionLines
from memtools.errors import ConfigError, MissingExtraError

_MIB: Final = 2**20  # the unit of memory_profiler


class LineFollower:
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
        self._turn = threading.Lock()
        self.lines: FunctionLines = FunctionLines(self._code.co_filename)

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function`, and follow its lines unless another call is being followed."""
        if not self._turn.acquire(blocking=False):
            return function(*args, **kwargs)
        try:
            with self._profiler:
                return function(*args, **kwargs)
        finally:
            self.lines.add(self._taken())
            self._begin_anew()
            self._turn.release()

    def _taken(self) -> Iterator[tuple[int, int, int, int]]:
        for _, lines in self._profiler.code_map.items():  # noqa: PERF102  # no dict in this respect
            for number, seen in lines:
                if seen is None:
                    continue
                grown, resident, hits = seen
                if number == self._code.co_firstlineno:
                    grown = 0.0
                yield number, hits, round(grown * _MIB), round(resident * _MIB)

    def _begin_anew(self) -> None:
        for measures in self._profiler.code_map.values():
            measures.clear()
        self._profiler.prevlines.clear()
        self._profiler.prev_lineno = None


def _code_of(function: Callable[..., Any]) -> CodeType:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not isinstance(code, CodeType) or not os.path.exists(code.co_filename):
        raise ConfigError("function", function, "a function of a file that can be read, where lines=True")
    return code
