"""What is decided about a function once, when it is decorated."""

import os
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

from memtools.errors import ConfigError
from memtools.scopes._functions import OptionsSource, sampler, wrap_function

_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")


if TYPE_CHECKING:
    P = ParamSpec("P")
    Q = ParamSpec("Q")
    R = TypeVar("R")
    R_co = TypeVar("R_co", covariant=True)
    S = TypeVar("S")
    M = TypeVar("M")  # what `.memory` is
    H = TypeVar("H")  # what `.history` is

    # What type checkers take a decorated function for; at run time it is a function with one attribute more. They take
    # a classmethod for a function of the class and do not bind it: cast where it matters.

    class Profiled(Generic[P, R_co, M]):
        """A function whose calls are measured: `f.memory`."""

        __name__: str
        __qualname__: str
        __wrapped__: Callable[..., Any]

        @property
        def memory(self) -> M:
            """What its calls used: `memory.statistics()`, `memory.last`."""
            ...

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> "Profiled[P, R_co, M]": ...
        @overload
        def __get__(
            self: "Profiled[Concatenate[S, Q], R, M]", instance: S, owner: type | None = None
        ) -> "Profiled[Q, R, M]": ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    class Recorded(Generic[P, R_co, H]):
        """A function whose last calls are remembered: `f.history`."""

        __name__: str
        __qualname__: str
        __wrapped__: Callable[..., Any]

        @property
        def history(self) -> H:
            """The newest calls, oldest first; with `key=` a mapping from key to such a list."""
            ...

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> "Recorded[P, R_co, H]": ...
        @overload
        def __get__(
            self: "Recorded[Concatenate[S, Q], R, H]", instance: S, owner: type | None = None
        ) -> "Recorded[Q, R, H]": ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


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


def is_descriptor(function: Any) -> bool:
    """Return whether `function` is a classmethod or staticmethod object, as in the body of a class."""
    return isinstance(function, (classmethod, staticmethod))


def decorate_callable(
    function: Any,
    options: OptionsSource,
    attributes: dict[str, object],
    *,
    sample_every: int = 1,
    called: Callable[..., Any] | None = None,
) -> Any:
    """Return `function` with owners for its calls, and with these attributes.

    Any: every callable comes out with the kind and signature that it came in with.

    Args:
        function: a function, or another callable: a partial, a built-in, a bound method, an object with `__call__`.
        options: what is to be done for each call.
        attributes: what the result has beside the attributes of `function`.
        sample_every: every n-th call is an owner, starting with the first.
        called: what is called in place of `function`.
    """
    if type(function) is FunctionType:
        wrapped = wrap_function(function, options, sample_every=sample_every, called=called)
        vars(wrapped).update(attributes)
        return wrapped

    from memtools.decorators._wrapping import DecoratedCallable  # loads wrapt

    return DecoratedCallable(function, options, attributes, sampler(sample_every))


def accept_descriptors(decorate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a `decorate` that also takes classmethod and staticmethod objects, and decorates the function inside.

    Any: the descriptor types are generic in the function, and the result is of the same type as the argument.
    """

    def decorate_any(function: Any) -> Any:
        if not is_descriptor(function):
            return decorate(function)
        descriptor: Any = type(function)(decorate(function.__func__))
        given: dict[str, object] = function.__dict__
        for name in given.keys() - descriptor.__dict__.keys():
            setattr(descriptor, name, given[name])
        return descriptor

    return decorate_any


def with_attribute(function: Any, name: str, value: object) -> Any:
    """Return the bare function of a disabled decorator, with the attribute that the decorated one would have.

    Any: every callable comes out as it went in.
    """
    with suppress(AttributeError):  # a built-in function takes no attributes
        setattr(function, name, value)
    return function
