"""Decorated functions: proxies that look like the function and call a wrapper instead.

Loaded when the first function is decorated, because loading wrapt takes longer than the rest of memtools does. No other
file imports wrapt.

A proxy of wrapt has the name, signature, docs, code flags and class of the function, so that frameworks see a coroutine
function where there is one. Its own way to bind and call costs 450 to 600 ns a call; overriding `__call__` and binding
with the interpreter's own method type costs less (docs/performance.md, decorators).
"""

from collections.abc import Callable
from importlib import import_module
from itertools import count, cycle, repeat
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

from memtools.decorators._decoration import Wrapper

if TYPE_CHECKING:

    class _Proxy:
        """The part of wrapt's proxy that is used here; wrapt has no type annotations."""

        __wrapped__: Callable[..., Any]
        __qualname__: str

        def __init__(self, wrapped: Callable[..., Any]) -> None: ...

else:
    from wrapt import CallableObjectProxy as _Proxy

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
M = TypeVar("M")  # what `.memory` is
H = TypeVar("H")  # what `.history` is

_MAX_CYCLE_LENGTH: Final = 1024  # a cycle holds a pointer for each call that it counts


class Decorated(_Proxy, Generic[P, R_co]):
    """A function each `sample_every`-th call of which goes through a wrapper, starting with the first.

    It is pickled and copied by reference, as functions are.
    """

    def __init__(self, function: Callable[P, R_co], wrapper: Wrapper, *, sample_every: int = 1) -> None:
        super().__init__(function)
        # One attribute instead of three: reading an attribute of a proxy costs as much as calling a function.
        self._self_parts = (_sampler(sample_every), function, wrapper)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        is_skipped, function, wrapper = self._self_parts
        if is_skipped():
            return function(*args, **kwargs)
        result: R_co = wrapper(function, args, kwargs)
        return result

    def __get__(self, instance: Any, owner: type | None = None) -> Any:  # Any: the subclasses give the types
        return self if instance is None else MethodType(self, instance)

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[str, str]]:
        return _unpickle, (self.__module__, self.__qualname__)

    def __copy__(self) -> "Decorated[P, R_co]":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Decorated[P, R_co]":
        return self


class Profiled(Decorated[P, R_co], Generic[P, R_co, M]):
    """A function whose calls are measured: `f.memory`."""

    def __init__(self, function: Callable[P, R_co], wrapper: Wrapper, memory: M, *, sample_every: int) -> None:
        super().__init__(function, wrapper, sample_every=sample_every)
        self._self_memory = memory

    @property
    def memory(self) -> M:
        """What its calls used: `memory.statistics()`, `memory.last`."""
        return self._self_memory

    if TYPE_CHECKING:  # the types of a bound method; at run time the base class binds
        # Type checkers take a classmethod for a function of the class and do not bind it: cast where it matters.
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> "Profiled[P, R_co, M]": ...
        @overload
        def __get__(
            self: "Profiled[Concatenate[S, Q], R, M]", instance: S, owner: type | None = None
        ) -> "Profiled[Q, R, M]": ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


class Recorded(Decorated[P, R_co], Generic[P, R_co, H]):
    """A function whose last calls are remembered: `f.history`."""

    def __init__(self, function: Callable[P, R_co], wrapper: Wrapper, history: H) -> None:
        super().__init__(function, wrapper)
        self._self_history = history

    @property
    def history(self) -> H:
        """The newest calls, oldest first; with `key=` a mapping from key to such a list."""
        return self._self_history

    if TYPE_CHECKING:  # as in `Profiled`

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> "Recorded[P, R_co, H]": ...
        @overload
        def __get__(
            self: "Recorded[Concatenate[S, Q], R, H]", instance: S, owner: type | None = None
        ) -> "Recorded[Q, R, H]": ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


class RecordedPerObject(Recorded[P, R_co, H]):
    """A method that, bound to an object, has that object's history.

    Args:
        history_of: returns the history of an object.
    """

    def __init__(
        self, function: Callable[P, R_co], wrapper: Wrapper, history: H, history_of: Callable[[object], H]
    ) -> None:
        super().__init__(function, wrapper, history)
        self._self_history_of = history_of

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        bound: Callable[..., Any] = MethodType(self, instance)
        return Recorded(bound, _call_through, self._self_history_of(instance))


def is_stacked(function: Callable[..., Any]) -> bool:
    """Return whether `function` is decorated by memtools already: its calls are then counted once."""
    return isinstance(function, Decorated)


def _sampler(sample_every: int) -> Callable[[], bool]:
    """Return what tells, at each call, whether the call is left out."""
    if sample_every == 1:
        return repeat(False).__next__
    if sample_every <= _MAX_CYCLE_LENGTH:
        return cycle([False] + [True] * (sample_every - 1)).__next__
    numbers = count().__next__
    return lambda: numbers() % sample_every != 0


def _unpickle(module: str, qualname: str) -> Any:  # Any: the object of that name
    found: Any = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def _call_through(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)
