"""`@profile_memory`: measure the memory of each call of a function."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar, cast, overload

from memtools._records import record
from memtools._suggestions import suggest_arguments
from memtools.decorators._decoration import (
    accept_descriptors,
    decorate_callable,
    is_enabled,
    report_name,
    with_attribute,
)
from memtools.decorators.memory_profiler import FunctionLines, LineProfilerAdapter
from memtools.errors import ConfigError
from memtools.ledger import Owner, Usage, choose_meter, open_owners
from memtools.ledger._ledger import current_usage, usage_tuple
from memtools.ledger._owner import Kind, UsageTuple
from memtools.scopes._calls import CallOptions
from memtools.scopes._functions import CallKind, call_kind, is_wrapped
from memtools.scopes._memory_scope import parse_name
from memtools.units import format_size, parse_count

if TYPE_CHECKING:
    from memtools.decorators._decoration import Profiled

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_KIND: Final = b"call"

_log = logging.getLogger("memtools.profile")


@record
class FunctionStatistics:
    """The memory that the measured calls of one function used together.

    Attributes:
        name: the function's name in reports.
        calls: how many measured calls have ended.
        failures: how many of them ended with an exception.
        active: how many measured calls are running.
        mean_peak_bytes: the mean of their peaks.
        max_peak_bytes: the highest of their peaks.
        retained_bytes: the sum of the bytes that were live when each call ended.
        retained_per_call_bytes: the mean of the same bytes.
        live_bytes: the bytes that the running calls hold now.
        duration_s: the sum of their wall times, in seconds.
        exact: False when one of them was not exact.
    """

    name: str
    calls: int
    failures: int
    active: int
    mean_peak_bytes: int
    max_peak_bytes: int
    retained_bytes: int
    retained_per_call_bytes: int
    live_bytes: int
    duration_s: float
    exact: bool

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.calls} calls, {self.failures} failed, peak mean {format_size(self.mean_peak_bytes)} "
            f"max {format_size(self.max_peak_bytes)}, retained {format_size(self.retained_bytes)} "
            f"({format_size(self.retained_per_call_bytes)} a call){'' if self.exact else ', not exact'}"
        )


class FunctionMemory:
    """The sums and maxima of the calls of one function: `f.memory`. Thread-safe.

    Attributes:
        lines: the memory of its lines with `profile_memory(lines=True)`, else None.
        kind: the kind of the owners of its calls, `"call"`.
    """

    def __init__(self, name: str, lines: FunctionLines | None = None) -> None:
        self._name = name
        self.lines = lines
        self._lock = threading.RLock()
        # A string of its own: owners keep it, and those of other functions of the same name have another one.
        self.kind: Kind = cast("Kind", _KIND.decode())
        self._reset()

    def __reduce__(self) -> tuple[Any, ...]:
        # With a function that is pickled by value: what its calls use there begins at nothing.
        return type(self), (self._name, self.lines)

    def _reset(self) -> None:
        self._last: UsageTuple | None = None
        self._exact = True
        self._calls = self._failures = self._peak_sum = self._peak_max = self._retained = 0
        self._duration_s = 0.0

    @property
    def last(self) -> Usage | None:
        """The usage of the measured call that ended last, or None."""
        last = self._last
        return None if last is None else Usage(*last)

    def record(self, owner: Owner, error: BaseException | None) -> None:
        """Add the call of `owner`, which has ended.

        Args:
            owner: the owner of the call.
            error: the exception that ended the call, or None.
        """
        figures = usage_tuple(owner)
        peak = figures.peak_bytes
        with self._lock:
            self._last = figures
            self._calls += 1
            self._failures += error is not None and not isinstance(error, GeneratorExit)
            self._peak_sum += peak
            if peak > self._peak_max:
                self._peak_max = peak
            self._retained += figures.retained_bytes
            self._duration_s += figures.duration_s
            self._exact = self._exact and figures.exact

    def statistics(self) -> FunctionStatistics:
        """Return the sums and maxima up to now; walks the list of open owners to count the running calls."""
        running = [owner for owner in open_owners() if owner.kind is self.kind]
        with self._lock:
            calls = self._calls or 1
            return FunctionStatistics(
                name=self._name,
                calls=self._calls,
                failures=self._failures,
                active=len(running),
                mean_peak_bytes=self._peak_sum // calls,
                max_peak_bytes=self._peak_max,
                retained_bytes=self._retained,
                retained_per_call_bytes=self._retained // calls,
                live_bytes=sum(owner.live_bytes for owner in running),
                duration_s=self._duration_s,
                exact=self._exact,
            )

    def clear(self) -> None:
        """Forget all calls."""
        with self._lock:
            self._reset()
        if self.lines is not None:
            self.lines.clear()

    def __repr__(self) -> str:
        return f"<FunctionMemory {self._name} calls={self._calls} max_peak={format_size(self._peak_max)}>"


class _ProfileDecorator(Protocol):
    @overload
    def __call__(self, function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # before the plain callable, which a staticmethod is as well
        self, function: "staticmethod[P, R]", /
    ) -> "staticmethod[P, R]": ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> "Profiled[P, R, FunctionMemory]": ...


@overload
def profile_memory(function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
@overload
def profile_memory(  # type: ignore[overload-overlap]  # as above
    function: "staticmethod[P, R]", /
) -> "staticmethod[P, R]": ...
@overload
def profile_memory(function: Callable[P, R], /) -> "Profiled[P, R, FunctionMemory]": ...
@overload
def profile_memory(
    *,
    name: str | None = None,
    sample_every: int = 1,
    log: int | None = logging.DEBUG,
    meter: str | None = None,
    lines: bool = False,
    enabled: bool | None = None,
) -> _ProfileDecorator: ...
@suggest_arguments(sample="sample_every")
def profile_memory(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    sample_every: int = 1,
    log: int | None = logging.DEBUG,
    meter: str | None = None,
    lines: bool = False,
    enabled: bool | None = None,
) -> Any:
    """Measure the memory of each call of a function.

    With or without arguments, on functions, methods, class and static methods, coroutine functions, generators and
    asynchronous generators. The result has `.memory`: `f.memory.statistics()` and `f.memory.last`, in bounded space.

    ```python
    @profile_memory(meter="tracemalloc")
    def build() -> list[int]:
        return list(range(10_000))

    build()
    assert build.memory.last.peak_bytes > 80_000
    ```

    Args:
        function: the function, where the decorator is used without arguments.
        name: the name in reports; by default the module and qualified name of the function.
        sample_every: measure every n-th call, starting with the first; the other calls go straight to the function.
        log: the level at which the usage of each measured call is logged to `memtools.profile`, or None for no log.
        meter: `"native"`, `"tracemalloc"` or `"rss"`; by default `MEMTOOLS_METER`, else `"native"` where it was built,
            else `"rss"`; read when the function is decorated.
        lines: measure the calls line by line as well, with memory_profiler (extra `lines`): `f.memory.lines`. Plain
            functions only, one call at a time. memory_profiler reads the resident memory of the whole process after
            every line, which makes the call many times slower; its own memory is charged to the call.
        enabled: False returns the bare function; by default `MEMTOOLS_ENABLED`, else True.

    Raises:
        ConfigError: when decorating, for an invalid argument, and for `lines` on a function that is not plain.
        MissingExtraError: when decorating, with `lines` where memory_profiler is not installed.
    """
    parse_count(sample_every, name="sample_every")
    if log is not None:
        parse_count(log, name="log", minimum=0)
    if name is not None:
        parse_name(name)
    chosen = choose_meter(meter)

    def decorate(function: Any) -> Any:
        kind = call_kind(function)
        label = name or report_name(function)
        if not is_enabled(enabled):
            return with_attribute(function, "memory", FunctionMemory(label))

        line_profiler = _line_profiler(function, kind) if lines else None
        memory = FunctionMemory(label, line_profiler.lines if line_profiler is not None else None)
        options = CallOptions(
            label,
            memory.kind,
            chosen,
            is_stacked=is_wrapped(function),
            on_end=memory.record if log is None else partial(_record_and_log, memory, log),
        )
        called = None if line_profiler is None else partial(line_profiler.call, function)
        return decorate_callable(function, options, {"memory": memory}, sample_every=sample_every, called=called)

    if function is None:
        return accept_descriptors(decorate)
    return accept_descriptors(decorate)(function)


def _record_and_log(memory: FunctionMemory, level: int, owner: Owner, error: BaseException | None) -> None:
    memory.record(owner, error)
    if _log.isEnabledFor(level):
        _log.log(level, "%s", current_usage(owner))


def _line_profiler(function: Any, kind: CallKind) -> LineProfilerAdapter:
    if kind != "plain":
        accepted = "False for coroutine functions and generators: memory_profiler measures plain functions only"
        raise ConfigError("lines", True, accepted)
    return LineProfilerAdapter(function)
