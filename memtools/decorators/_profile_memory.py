"""`@profile_memory`: what did each call cost, exactly, while others ran in between?"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from memtools._records import record
from memtools.decorators._wrapping import (
    Decorated,
    Detour,
    detour_for,
    is_enabled,
    is_layered,
    name_of,
    over_descriptors,
    shape_of,
)
from memtools.decorators.memory_profiler import FunctionLines
from memtools.errors import ConfigError
from memtools.ledger import Owner, Usage, choose_meter, open_owners
from memtools.ledger._ledger import current_usage, usage_tuple
from memtools.ledger._owner import UsageTuple
from memtools.scopes import CallOptions, parse_name
from memtools.units import format_size, parse_count

if TYPE_CHECKING:
    from memtools.decorators.memory_profiler import LineFollower


# What the calls of one function used, in bounded space: sums, maxima and the last one.


@record
class FunctionStatistics:
    """What the measured calls of one function used together.

    Attributes:
        name: the function's name in reports.
        calls: how many measured calls have ended.
        failures: how many of them ended with an exception.
        active: how many measured calls are running.
        mean_peak_bytes: the mean of their peaks.
        max_peak_bytes: the highest of their peaks.
        retained_bytes: the sum of what they left alive when they ended.
        retained_per_call_bytes: the same for one call.
        live_bytes: what the running calls hold now.
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
    """The running account of one function: `f.memory`. Safe from any thread.

    Attributes:
        lines: what its lines did to the process's memory, with `profile_memory(lines=True)`, else None.
    """

    def __init__(self, name: str, lines: FunctionLines | None = None) -> None:
        self._name = name
        self.lines = lines
        self._lock = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        self._last: UsageTuple | None = None
        self._exact = True
        self._calls = self._failures = self._peak_sum = self._peak_max = self._retained = 0
        self._duration_s = 0.0

    @property
    def last(self) -> Usage | None:
        """What the measured call that ended last used, or None."""
        last = self._last
        return None if last is None else Usage(*last)

    def record(self, owner: Owner, error: BaseException | None) -> None:
        """Add a call that has ended, by that exception or by None."""
        figures = usage_tuple(owner)
        peak = figures.peak_bytes
        with self._lock:
            self._last = figures
            self._calls += 1
            self._failures += error is not None
            self._peak_sum += peak
            if peak > self._peak_max:
                self._peak_max = peak
            self._retained += figures.retained_bytes
            self._duration_s += figures.duration_s
            self._exact = self._exact and figures.exact

    def statistics(self) -> FunctionStatistics:
        """Return the sums and maxima up to now."""
        running = [owner for owner in open_owners() if owner.kind == "call" and owner.name == self._name]
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
        """Forget what was recorded."""
        with self._lock:
            self._begin()
        if self.lines is not None:
            self.lines.clear()

    def __repr__(self) -> str:
        return f"<FunctionMemory {self._name} calls={self._calls} max_peak={format_size(self._peak_max)}>"


P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger("memtools.profile")


class Profiled(Decorated[P, R_co]):
    """A function whose calls are measured."""

    def __init__(
        self,
        function: Callable[P, R_co],
        plan: CallOptions,
        memory: FunctionMemory,
        sample: int,
        follow: Callable[..., Any] | None = None,  # calls what it is given and returns what that returns
    ) -> None:
        detour = detour_for(shape_of(function), plan, function)
        super().__init__(function, detour if follow is None else _followed(detour, follow), sample=sample)
        self._self_memory = memory

    @property
    def memory(self) -> FunctionMemory:
        """What its calls used: `memory.statistics()`, `memory.last`."""
        return self._self_memory

    if TYPE_CHECKING:  # how it binds, for type checkers; it binds as its base class does
        # A classmethod is to them a function that takes the class, and they do not let it bind: cast where it matters.
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> "Profiled[P, R_co]": ...
        @overload
        def __get__(
            self: "Profiled[Concatenate[S, Q], R]", instance: S, owner: type | None = None
        ) -> "Profiled[Q, R]": ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


class _ProfileDecorator(Protocol):
    @overload
    def __call__(self, function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a staticmethod can be called, too: it stands first
        self, function: "staticmethod[P, R]", /
    ) -> "staticmethod[P, R]": ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Profiled[P, R]: ...


@overload
def profile_memory(function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
@overload
def profile_memory(  # type: ignore[overload-overlap]  # as above
    function: "staticmethod[P, R]", /
) -> "staticmethod[P, R]": ...
@overload
def profile_memory(function: Callable[P, R], /) -> Profiled[P, R]: ...
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
    """Measure the calls of a function, each as an owner of its own.

    Bare or called, on functions, methods, class and static methods, coroutine functions, generators and asynchronous
    generators. The result has `.memory`: `f.memory.statistics()` and `f.memory.last`, in bounded space.

    ```python
    @profile_memory(meter="tracemalloc")
    def build() -> list[int]:
        return list(range(10_000))

    build()
    assert build.memory.last.peak_bytes > 80_000
    ```

    Args:
        function: the function, where the decorator is used bare.
        name: what reports call it; by default its module and qualified name.
        sample_every: measure every so manieth call, the first one included; the others go straight through.
        log: the level at which each usage is logged to `memtools.profile`, or None for not at all.
        meter: `"native"`, `"tracemalloc"` or `"rss"`; by default `MEMTOOLS_METER`, else `"native"` where it was built,
            else `"rss"`; read when decorating.
        lines: follow the calls line by line as well, with memory_profiler (extra `lines`): `f.memory.lines`. Plain
            functions only, one call at a time; it looks at the resident memory of the whole process, in pages, after
            every line, which makes the call many times slower and adds the tracer's own to its account.
        enabled: False returns the bare function; by default `MEMTOOLS_ENABLED`, else True.

    Raises:
        ConfigError: when decorating, for an argument that makes no sense, and for `lines` on what is no plain function.
        MissingExtraError: when decorating, with `lines` where memory_profiler is not installed.
    """
    parse_count(sample_every, name="sample_every")
    if log is not None:
        parse_count(log, name="log", minimum=0)
    if name is not None:
        parse_name(name)
    chosen = choose_meter(meter)

    def decorate(function: Any) -> Any:
        shape_of(function)
        if not is_enabled(enabled):
            return _bare(function, FunctionMemory(name or name_of(function)))
        follower = _follower(function) if lines else None
        memory = FunctionMemory(name or name_of(function), follower.lines if follower is not None else None)

        on_end = memory.record if log is None else _logged(memory, log)
        plan = CallOptions(name or name_of(function), "call", chosen, is_layered=is_layered(function), on_end=on_end)
        return Profiled(function, plan, memory, sample_every, follower.call if follower is not None else None)

    if function is None:
        return over_descriptors(decorate)
    return over_descriptors(decorate)(function)


def _logged(memory: FunctionMemory, level: int) -> Callable[[Owner, BaseException | None], None]:
    def on_end(owner: Owner, error: BaseException | None) -> None:
        memory.record(owner, error)
        if _log.isEnabledFor(level):
            _log.log(level, "%s", current_usage(owner))

    return on_end


def _follower(function: Any) -> "LineFollower":
    if shape_of(function) != "plain":
        accepted = "False for coroutine functions and generators: memory_profiler follows plain functions only"
        raise ConfigError("lines", True, accepted)
    from memtools.decorators.memory_profiler import LineFollower

    return LineFollower(function)


def _followed(detour: Detour, follow: Callable[..., Any]) -> Detour:
    def lines_as_well(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return detour(partial(follow, function), args, kwargs)

    return lines_as_well


def _bare(function: Any, memory: FunctionMemory) -> Any:
    with suppress(AttributeError):  # a builtin has no room for it
        function.memory = memory  # code that reads it finds it empty
    return function
