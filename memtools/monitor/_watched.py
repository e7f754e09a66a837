"""Functions whose calls are operations: `@monitor.watch`.

Covers: plain and coroutine functions, class and static methods; name, signature, kind and pickling stay as they were.
Leaves to others: counting (`_operations`).

A plain function around a plain function, not the proxy of `memtools.decorators`: it binds, pickles and is a coroutine
function by itself, it costs half as much, and there is nothing that it would have to carry.
"""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from time import perf_counter
from typing import Any

from memtools.errors import ConfigError
from memtools.ledger import is_failure
from memtools.monitor._operations import Operation


def watched(function: Any, account: Callable[[str], Operation], name: str | None = None) -> Any:
    """Return `function` with each call noted in the account of its name.

    Any: what comes in goes out as it was; `MemoryMonitor.watch` says so to type checkers.

    Raises:
        ConfigError: for what cannot be called, for classes, and for generators, whose duration is their consumer's.
    """
    if type(function) in (classmethod, staticmethod):
        return type(function)(watched(function.__func__, account, name))

    accepted = "a function or coroutine function"
    if not callable(function) or isinstance(function, type):
        raise ConfigError("function", function, accepted)
    if _is_a("isgeneratorfunction", function) or _is_a("isasyncgenfunction", function):
        raise ConfigError("function", function, f"{accepted}: how long a generator takes is up to who consumes it")

    operation = account(_name_of(function) if name is None else name)
    return (_later if _is_a("iscoroutinefunction", function) else _now)(function, operation)


def _now(function: Callable[..., Any], operation: Operation) -> Callable[..., Any]:
    note, clock = operation.note, perf_counter

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            note(clock() - began, is_failure(error))
            raise
        note(clock() - began)
        return result

    return call


def _later(function: Callable[..., Any], operation: Operation) -> Callable[..., Any]:
    note, clock = operation.note, perf_counter

    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            note(clock() - began, is_failure(error))
            raise
        note(clock() - began)
        return result

    return call


def _is_a(question: str, function: Callable[..., Any]) -> bool:
    ask: Callable[[object], bool] = getattr(inspect, question)
    return ask(function) or ask(vars(type(function)).get("__call__"))


def _name_of(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return _name_of(function.func)
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    module = getattr(function, "__module__", None)
    return name if module in (None, "__main__", "__mp_main__") else f"{module}.{name}"
