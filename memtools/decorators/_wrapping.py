"""What a decorated function is: the function itself in all that can be asked of it, and a detour when it is called.

Covers: the proxy around the function, binding, pickling and copying by reference, leaving out calls by sampling.
Leaves to others: what happens on the detour (`_detours` and the decorators). The only file that knows wrapt.

A proxy of wrapt has the name, signature, docs, code flags and class of what it wraps, so that frameworks see a
coroutine function where there is one. Its own way to bind and call costs 450 to 600 ns a call; overriding `__call__`
and binding by the interpreter's own method type costs less (docs/performance.md, decorators).
"""

from collections.abc import Callable
from importlib import import_module
from itertools import count, cycle, repeat
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeAlias, TypeVar

if TYPE_CHECKING:

    class _Proxy:
        """What of wrapt's proxy is used here; wrapt ships no types."""

        __wrapped__: Callable[..., Any]
        __qualname__: str

        def __init__(self, wrapped: Callable[..., Any]) -> None: ...

else:
    from wrapt import CallableObjectProxy as _Proxy

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

# Any: a detour takes and returns what the function does; `Decorated` says what that is.
Detour: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_LONGEST_CYCLE: Final = 1024  # a cycle holds a pointer for each call that it counts


class Decorated(_Proxy, Generic[P, R_co]):
    """A function that takes a detour on each `sample`-th call, the first one included."""

    def __init__(self, function: Callable[P, R_co], detour: Detour, *, sample: int = 1) -> None:
        super().__init__(function)
        # One attribute instead of three: reading one from a proxy costs as much as calling a function.
        self._self_parts = (_skipper(sample), function, detour)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        skips, function, detour = self._self_parts
        if skips():
            return function(*args, **kwargs)
        result: R_co = detour(function, args, kwargs)
        return result

    def __get__(self, instance: Any, owner: type | None = None) -> Any:  # Any: subclasses say how they bind
        return self if instance is None else MethodType(self, instance)

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[str, str]]:
        return _found, (self.__module__, self.__qualname__)

    def __copy__(self) -> "Decorated[P, R_co]":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Decorated[P, R_co]":
        return self


def _skipper(sample: int) -> Callable[[], bool]:
    if sample == 1:
        return repeat(False).__next__
    if sample <= _LONGEST_CYCLE:
        return cycle([False] + [True] * (sample - 1)).__next__
    numbers = count().__next__
    return lambda: numbers() % sample != 0


def _found(module: str, qualname: str) -> Any:  # Any: whatever stands under that name
    found: Any = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found
