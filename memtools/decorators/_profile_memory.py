"""`@profile_memory`: what did each call cost, exactly, while others ran in between?"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from memtools.decorators._detours import detour_for, is_enabled, is_layered, name_of, over_descriptors, shape_of
from memtools.decorators._function_memory import FunctionMemory
from memtools.decorators._wrapping import Decorated
from memtools.ledger import Owner, choose_meter, usage_of
from memtools.scopes import Plan, parse_name
from memtools.units import parse_count

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger("memtools.profile")


class Profiled(Decorated[P, R_co]):
    """A function whose calls are measured."""

    def __init__(self, function: Callable[P, R_co], plan: Plan, memory: FunctionMemory, sample: int) -> None:
        super().__init__(function, detour_for(shape_of(function), plan), sample=sample)
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
    sample: int = 1,
    log: int | None = logging.DEBUG,
    meter: str | None = None,
    enabled: bool | None = None,
) -> _ProfileDecorator: ...
def profile_memory(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    sample: int = 1,
    log: int | None = logging.DEBUG,
    meter: str | None = None,
    enabled: bool | None = None,
) -> Any:
    """Measure the calls of a function, each as an owner of its own.

    Bare or called, on functions, methods, class and static methods, coroutine functions, generators and asynchronous
    generators. The result has `.memory`: `f.memory.statistics()` and `f.memory.last`, in bounded space.

    ```python
    @profile_memory(meter="traced")
    def build() -> list[int]:
        return list(range(10_000))

    build()
    assert build.memory.last.peak_bytes > 80_000
    ```

    Args:
        function: the function, where the decorator is used bare.
        name: what reports call it; by default its module and qualified name.
        sample: measure every so manieth call, the first one included; the others go straight through.
        log: the level at which each usage is logged to `memtools.profile`, or None for not at all.
        meter: `"native"`, `"traced"` or `"resident"`; by default `MEMTOOLS_METER`, else `"native"` where it was built,
            else `"resident"`; read when decorating.
        enabled: False returns the bare function; by default `MEMTOOLS_ENABLED`, else True.

    Raises:
        ConfigError: when decorating, for an argument that makes no sense.
    """
    parse_count(sample, name="sample")
    if log is not None:
        parse_count(log, name="log", least=0)
    if name is not None:
        parse_name(name)
    chosen = choose_meter(meter)

    def decorate(function: Any) -> Any:
        shape_of(function)
        memory = FunctionMemory(name or name_of(function))
        if not is_enabled(enabled):
            return _bare(function, memory)

        def on_end(owner: Owner, error: BaseException | None) -> None:
            memory.record(owner, failed=error is not None)
            if log is not None and _log.isEnabledFor(log):
                _log.log(log, "%s", usage_of(owner))

        plan = Plan(name or name_of(function), "call", chosen, is_layered=is_layered(function), on_end=on_end)
        return Profiled(function, plan, memory, sample)

    if function is None:
        return over_descriptors(decorate)
    return over_descriptors(decorate)(function)


def _bare(function: Any, memory: FunctionMemory) -> Any:
    with suppress(AttributeError):  # a builtin has no room for it
        function.memory = memory  # code that reads it finds it empty
    return function
