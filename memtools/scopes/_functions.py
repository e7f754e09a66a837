"""Functions each call of which is an owner.

The result is a real function, since much of Python and of other libraries treats nothing else as one: a class makes
static and class methods of `__new__`, `__init_subclass__` and `__class_getitem__`, pickle refers to a function by its
name and checks that this is the object, cloudpickle sends one by value, and a call of one function by another takes no
C stack. Traps, and what is done about them:

- *Kind.* `inspect` tells coroutine functions and generator functions by the flags of their code. The flags are those of
  the wrapped function. CPython reads them nowhere else: what makes a generator is an instruction, which is not there.
- *Globals.* They are those of the wrapped function, in which frameworks look up annotations that are text. So the code
  uses no global name, but only what its closure holds.
- *Pickling by value.* The closure holds only what can be pickled; iterators cannot be since Python 3.14.
- *Recursion.* A call takes one frame more than the bare function, as with `functools.wraps`.
"""

import functools
import inspect
from collections.abc import Callable
from functools import lru_cache
from itertools import count, repeat
from operator import mod
from types import CodeType, CoroutineType, FunctionType
from typing import Any, Final, Literal, Protocol, Self, TypeAlias

from memtools.errors import ConfigError
from memtools.scopes._calls import (
    CallOptions,
    copy_name,
    coroutine_tracker,
    ensure_coroutine,
    finish,
    generate,
    generate_async,
    generate_awaitable,
    postpone_end,
    track_coroutine,
)

CallKind: TypeAlias = Literal["plain", "coroutine", "generator", "awaitable generator", "async generator"]

_KIND_FLAGS: Final = (
    inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR
)


class OptionsSource(Protocol):
    """What a decorator says of each call: `CallOptions` where it says the same of all."""

    def options_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallOptions:
        """Return the options of a call with these arguments."""
        ...


def call_kind(function: Callable[..., Any]) -> CallKind:
    """Return how a call of `function` runs, as far as it is marked; what a plain call returns tells the rest.

    Raises:
        ConfigError: when `function` is not callable, or is a class.
    """
    if not callable(function) or inspect.isclass(function):
        raise ConfigError("function", function, "a function or method (below property, where both decorate)")

    for candidate in (function, type(function).__call__):
        if inspect.isasyncgenfunction(candidate):
            return "async generator"
        if inspect.iscoroutinefunction(candidate):
            return "coroutine"
        if inspect.isgeneratorfunction(candidate):
            flags = getattr(getattr(candidate, "__code__", None), "co_flags", 0)
            return "awaitable generator" if flags & inspect.CO_ITERABLE_COROUTINE else "generator"
    return "plain"


def wrap_function(
    function: Callable[..., Any],
    options: OptionsSource,
    *,
    sample_every: int = 1,
    called: Callable[..., Any] | None = None,
) -> FunctionType:
    """Return a function of the same name, kind and signature whose calls are owners.

    Args:
        function: a Python function, or one that looks like it.
        options: what is to be done for each call.
        sample_every: every n-th call is an owner, starting with the first; the others go straight to the function.
        called: what is called in place of `function`.
    """
    call = call_through(function, call_kind(function), options, sampler(sample_every), called)
    if not isinstance(function, FunctionType):  # a compiled one, whose globals may be no dict
        functools.update_wrapper(call, function)
        return call
    code = _code_with_flags(call.__code__, function.__code__.co_flags & _KIND_FLAGS)
    wrapped = FunctionType(code, function.__globals__, function.__name__, None, call.__closure__)
    functools.update_wrapper(wrapped, function)
    return wrapped


def copy_function(wrapped: FunctionType) -> FunctionType:
    """Return another function of the same calls, with attributes of its own."""
    made = FunctionType(wrapped.__code__, wrapped.__globals__, wrapped.__name__, None, wrapped.__closure__)
    functools.update_wrapper(made, wrapped)
    made.__wrapped__ = wrapped.__wrapped__  # type: ignore[attr-defined]  # set by `wrap_function`
    return made


def call_through(
    function: Callable[..., Any],
    kind: CallKind,
    options: OptionsSource,
    is_skipped: Callable[[], object] | None,
    called: Callable[..., Any] | None = None,
) -> FunctionType:
    """Return a plain function that calls `function`, which is of this kind, as an owner unless `is_skipped` says so.

    The other arguments are those of `wrap_function`.
    """
    called = function if called is None else called
    if kind == "plain":
        rest = options.options_for, BaseException, RecursionError, finish, postpone_end
        made: Any = _plain(called, *rest) if is_skipped is None else _sampled_plain(function, is_skipped, called, *rest)
    else:
        start = _Starter(kind, function, options).start
        made = _started(function, start) if is_skipped is None else _sampled_started(function, is_skipped, start)
    return made  # type: ignore[no-any-return]


# The four functions that are called in place of a decorated one. Whatever they use is an argument of their makers.


def _plain(
    called: Any, options_for: Any, failures: Any, too_deep: Any, finish: Any, postpone_end: Any
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        options = options_for(args, kwargs)
        owner = options.open()
        try:
            result = called(*args, **kwargs)
        except failures as error:
            try:
                options.end(owner, error)
            except too_deep:
                postpone_end((options, owner, error))
            raise
        try:
            return finish(options, owner, result)
        except too_deep:
            postpone_end((options, owner, None))
            raise

    return call


def _sampled_plain(
    function: Any, is_skipped: Any, called: Any, options_for: Any, failures: Any, too_deep: Any, finish: Any,
    postpone_end: Any,
) -> Callable[..., Any]:  # fmt: skip
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_skipped():
            return function(*args, **kwargs)
        options = options_for(args, kwargs)
        owner = options.open()
        try:
            result = called(*args, **kwargs)
        except failures as error:
            try:
                options.end(owner, error)
            except too_deep:
                postpone_end((options, owner, error))
            raise
        try:
            return finish(options, owner, result)
        except too_deep:
            postpone_end((options, owner, None))
            raise

    return call


def _started(function: Any, start: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return start(function(*args, **kwargs), args, kwargs)

    return call


def _sampled_started(function: Any, is_skipped: Any, start: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_skipped():
            return function(*args, **kwargs)
        return start(function(*args, **kwargs), args, kwargs)

    return call


@lru_cache(maxsize=64)
def _code_with_flags(code: CodeType, flags: int) -> CodeType:
    return code.replace(co_flags=code.co_flags | flags)


def is_wrapped(function: object) -> bool:
    """Return whether a call of `function` goes through a function of `wrap_function`, beneath other wrappers, too."""
    seen: set[int] = set()
    while id(function) not in seen:
        if isinstance(function, FunctionType) and function.__code__.co_filename == __file__:
            return True
        seen.add(id(function))
        function = getattr(function, "__wrapped__", function)
    return False


class _Starter:
    """Runs what the calls of a coroutine function or generator function return."""

    def __init__(self, kind: CallKind, function: Callable[..., Any], options: OptionsSource) -> None:
        self._kind = kind
        self._function = function
        self._options = options
        if kind == "coroutine" and isinstance(options, CallOptions):
            self._track = coroutine_tracker(options, function)
            self.start: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] = self.start_coroutine
        else:
            self.start = self.start_any
        runs: dict[CallKind, Callable[[CallOptions, Any], Any]] = {
            "coroutine": track_coroutine,
            "generator": generate,
            "awaitable generator": generate_awaitable,
            "async generator": generate_async,
        }
        self._run = runs[kind]

    def start_coroutine(self, inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """Return a coroutine that runs `inner`, faster than `start_any`."""
        return self._track(inner if type(inner) is CoroutineType else ensure_coroutine(inner))

    def start_any(self, inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what runs `inner`, and is of its kind."""
        return copy_name(self._function, self._run(self._options.options_for(args, kwargs), inner))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _Starter, (self._kind, self._function, self._options)


def sampler(sample_every: int) -> Callable[[], object] | None:
    """Return what tells, at each call, whether the call is left out; None where no call is."""
    return None if sample_every == 1 else _CallNumbers(sample_every).__next__


class _CallNumbers(map):  # type: ignore[type-arg]  # it cannot be subscripted at run time
    """The numbers of the calls, modulo `sample_every`: 0 for the calls that are measured. Counts in C."""

    def __new__(cls, sample_every: int) -> Self:
        made = super().__new__(cls, mod, count(), repeat(sample_every))  # pyright: ignore[reportUnknownMemberType]
        made._sample_every = sample_every
        return made

    _sample_every: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _CallNumbers, (self._sample_every,)
