"""What is decided about a function once, when it is decorated."""

import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import CoroutineType
from typing import Any, Final, Literal, TypeAlias

from memtools.errors import ConfigError
from memtools.scopes._calls import (
    CallOptions,
    call,
    copy_name,
    coroutine_tracker,
    ensure_coroutine,
    generate,
    generate_async,
    track_coroutine,
)

CallKind: TypeAlias = Literal["plain", "coroutine", "generator", "async generator"]

# Called with the function and the arguments of one call. Any: it takes and returns what the function does; the class of
# the decorated function keeps the types.
Wrapper: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
Runner: TypeAlias = Callable[[CallOptions, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")


def call_kind(function: Callable[..., Any]) -> CallKind:
    """Return how a call of `function` runs.

    Raises:
        ConfigError: when `function` is not callable, or is a class.
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
    """Return the name of `function` in reports: module and qualified name, without the module of the main program."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None)
    return name if module in (None, "__main__", "__mp_main__") else f"{module}.{name}"


def is_enabled(enabled: bool | None) -> bool:
    """Return whether decorators measure at all: the argument, else `MEMTOOLS_ENABLED`, else True.

    Raises:
        ConfigError: for a value of `MEMTOOLS_ENABLED` that means neither on nor off.
    """
    if enabled is not None:
        return bool(enabled)
    value = os.environ.get("MEMTOOLS_ENABLED", "1").strip().lower()
    if value not in _ON + _OFF:
        raise ConfigError("MEMTOOLS_ENABLED", value, ", ".join(_ON) + " or " + ", ".join(_OFF))
    return value in _ON


def runner_for(kind: CallKind) -> Runner:
    """Return what runs a call of a function of this kind as an owner."""
    if kind == "plain":
        return call

    runners: dict[CallKind, Callable[[CallOptions, Any], Any]] = {
        "coroutine": track_coroutine,
        "generator": generate,
        "async generator": generate_async,
    }
    run = runners[kind]

    def runner(
        options: CallOptions, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return copy_name(function, run(options, function(*args, **kwargs)))

    return runner


def wrapper_for(kind: CallKind, options: CallOptions, function: Callable[..., Any]) -> Wrapper:
    """Return the wrapper that opens an owner for each call of `function`, which is of this kind."""
    if kind != "coroutine":
        return partial(runner_for(kind), options)

    track = coroutine_tracker(options, function)

    def wrapper(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inner = function(*args, **kwargs)
        return track(inner if type(inner) is CoroutineType else ensure_coroutine(inner))

    return wrapper


def is_descriptor(function: object) -> bool:
    """Return whether `function` is a classmethod or staticmethod object, as in the body of a class."""
    return type(function) in (classmethod, staticmethod)


def accept_descriptors(decorate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a `decorate` that also takes classmethod and staticmethod objects, and decorates the function inside.

    Any: the descriptor types are generic in the function, and the result is of the same type as the argument.
    """

    def decorate_any(function: Any) -> Any:
        if not is_descriptor(function):
            return decorate(function)
        return type(function)(decorate(function.__func__))

    return decorate_any


def with_attribute(function: Any, name: str, value: object) -> Any:
    """Return the bare function of a disabled decorator, with the attribute that the decorated one would have.

    Any: every callable comes out as it went in.
    """
    with suppress(AttributeError):  # a built-in function takes no attributes
        setattr(function, name, value)
    return function
