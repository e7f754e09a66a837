"""What a decorated function is: the function itself in all that can be asked of it, and a detour when it is called.

Covers: the proxy around the function, binding, pickling and copying by reference, leaving out calls by sampling.
Leaves to others: what happens on the detour (`_detours` and the decorators). The only file that knows wrapt.

A proxy of wrapt has the name, signature, docs, code flags and class of what it wraps, so that frameworks see a
coroutine function where there is one. Its own way to bind and call costs 450 to 600 ns a call; overriding `__call__`
and binding by the interpreter's own method type costs less (docs/performance.md, decorators).
"""

import inspect
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import count, cycle, repeat
from types import CoroutineType, MethodType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, ParamSpec, TypeAlias, TypeVar

from memtools.errors import ConfigError
from memtools.scopes import (
    CallOptions,
    call,
    copy_name,
    coroutine_tracker,
    ensure_coroutine,
    generate,
    generate_async,
    track_coroutine,
)

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
Wrapper: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_LONGEST_CYCLE: Final = 1024  # a cycle holds a pointer for each call that it counts


class Decorated(_Proxy, Generic[P, R_co]):
    """A function that takes a detour on each `sample`-th call, the first one included."""

    def __init__(self, function: Callable[P, R_co], wrapper: Wrapper, *, sample_every: int = 1) -> None:
        super().__init__(function)
        # One attribute instead of three: reading one from a proxy costs as much as calling a function.
        self._self_parts = (_sampler(sample_every), function, wrapper)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        skips, function, wrapper = self._self_parts
        if skips():
            return function(*args, **kwargs)
        result: R_co = wrapper(function, args, kwargs)
        return result

    def __get__(self, instance: Any, owner: type | None = None) -> Any:  # Any: subclasses say how they bind
        return self if instance is None else MethodType(self, instance)

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[str, str]]:
        return _unpickle, (self.__module__, self.__qualname__)

    def __copy__(self) -> "Decorated[P, R_co]":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Decorated[P, R_co]":
        return self


def _sampler(sample_every: int) -> Callable[[], bool]:
    if sample_every == 1:
        return repeat(False).__next__
    if sample_every <= _LONGEST_CYCLE:
        return cycle([False] + [True] * (sample_every - 1)).__next__
    numbers = count().__next__
    return lambda: numbers() % sample_every != 0


def _unpickle(module: str, qualname: str) -> Any:  # Any: whatever stands under that name
    found: Any = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


# Which detour a function takes, decided once, when it is decorated.
#
# Covers: telling plain functions, coroutine functions, generators and asynchronous generators apart, names for reports,
# switching decorators off. Leaves to others: running the call (`memtools.scopes`).

CallKind: TypeAlias = Literal["plain", "coroutine", "generator", "async generator"]

# Any: what a function takes and returns is between it and its callers.
Runner: TypeAlias = Callable[[CallOptions, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_ON = ("1", "true", "yes", "on")
_OFF = ("0", "false", "no", "off")


def call_kind(function: Callable[..., Any]) -> CallKind:
    """Return how a call of `function` runs.

    Raises:
        ConfigError: for what cannot be called, and for classes.
    """
    if not callable(function) or inspect.isclass(function):
        raise ConfigError("function", function, "a function or method")

    for candidate in (function, vars(type(function)).get("__call__")):
        if inspect.isasyncgenfunction(candidate):
            return "async generator"
        if inspect.iscoroutinefunction(candidate):
            return "coroutine"
        if inspect.isgeneratorfunction(candidate):
            return "generator"
    return "plain"


def report_name(function: Callable[..., Any]) -> str:
    """Return what reports call `function`: module and qualified name, without the module of the main program."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None)
    return name if module in (None, "__main__", "__mp_main__") else f"{module}.{name}"


def is_stacked(function: Callable[..., Any]) -> bool:
    """Return whether `function` is under a decorator of ours already: its calls are then counted once."""
    return isinstance(function, Decorated)


def runner_for(kind: CallKind) -> Runner:
    """Return what runs a call of a function of that shape as an owner by the plan that it is given."""
    if kind == "plain":
        return call

    runs: dict[CallKind, Callable[[CallOptions, Any], Any]] = {
        "coroutine": track_coroutine,
        "generator": generate,
        "async generator": generate_async,
    }
    run = runs[kind]

    def runner(
        options: CallOptions, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return copy_name(function, run(options, function(*args, **kwargs)))

    return runner


def wrapper_for(kind: CallKind, options: CallOptions, function: Callable[..., Any]) -> Wrapper:
    """Return the detour that opens an owner by `plan` for each call of a function of that shape."""
    if kind != "coroutine":
        return partial(runner_for(kind), options)

    track = coroutine_tracker(options, function)

    def wrapper(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inner = function(*args, **kwargs)
        return track(inner if type(inner) is CoroutineType else ensure_coroutine(inner))

    return wrapper


def is_enabled(enabled: bool | None) -> bool:
    """Return whether decorators do anything: the argument, else `MEMTOOLS_ENABLED`, else yes.

    Raises:
        ConfigError: for a value of `MEMTOOLS_ENABLED` that is neither.
    """
    if enabled is not None:
        return bool(enabled)
    value = os.environ.get("MEMTOOLS_ENABLED", "1").strip().lower()
    if value not in _ON + _OFF:
        raise ConfigError("MEMTOOLS_ENABLED", value, ", ".join(_ON) + " or " + ", ".join(_OFF))
    return value in _ON


def is_descriptor(function: object) -> bool:
    """Return whether it is a classmethod or staticmethod, as it stands in the body of a class."""
    return type(function) in (classmethod, staticmethod)


def accept_descriptors(decorate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a `decorate` that also takes classmethods and staticmethods, and decorates what they hold.

    Any: the descriptor types are generic in what they hold, and both come out as they went in.
    """

    def decorate_any(function: Any) -> Any:
        if not is_descriptor(function):
            return decorate(function)
        return type(function)(decorate(function.__func__))

    return decorate_any
