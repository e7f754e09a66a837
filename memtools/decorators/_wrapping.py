"""Decorated callables that are not functions: partials, built-ins, bound methods, objects with `__call__`.

A file of its own because it is loaded when the first of them is decorated: loading wrapt takes long. No other
file imports wrapt.

A proxy of wrapt has the attributes and the class of the callable. Its own way to bind would bind what does not bind by
itself, and its own way to pickle would be refused.
"""

import sys
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

from memtools.scopes._functions import OptionsSource, call_kind, call_through

if TYPE_CHECKING:

    class _Proxy:
        """The part of wrapt's proxy that is used here; wrapt has no type annotations."""

        __wrapped__: Callable[..., Any]

        def __init__(self, wrapped: Callable[..., Any]) -> None: ...

else:
    from wrapt import CallableObjectProxy as _Proxy


class DecoratedCallable(_Proxy):
    """A callable whose calls are owners. It binds as the callable does, and not at all where that does not.

    Any: it takes, returns and has what the callable does.

    Args:
        wrapped: the callable.
        options: what is to be done for each call.
        attributes: what it has beside the attributes of the callable.
        is_skipped: tells, at each call, whether it is left out; None where no call is.
    """

    def __init__(
        self,
        wrapped: Callable[..., Any],
        options: OptionsSource,
        attributes: dict[str, object],
        is_skipped: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(wrapped)
        # wrapt keeps attributes of such names on the proxy.
        self._self_parts = options, attributes, is_skipped
        self._self_call = call_through(wrapped, call_kind(wrapped), options, is_skipped)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Called for what is not found on the proxy itself.
        attributes = object.__getattribute__(self, "_self_parts")[1]
        return attributes[name] if name in attributes else getattr(self.__wrapped__, name)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        bind = getattr(type(self.__wrapped__), "__get__", None)
        if bind is None:
            return self
        bound = bind(self.__wrapped__, instance, owner)
        if bound is self.__wrapped__:
            return self
        if type(bound) is MethodType and bound.__func__ is self.__wrapped__:
            return MethodType(self, bound.__self__)
        return DecoratedCallable(bound, *self._self_parts)

    def __set_name__(self, owner: type, name: str) -> None:
        set_name = getattr(type(self.__wrapped__), "__set_name__", None)
        if set_name is not None:
            set_name(self.__wrapped__, owner, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if _is_global(self):
            return self.__qualname__  # by reference, as functions are
        return DecoratedCallable, (self.__wrapped__, *self._self_parts)

    def __copy__(self) -> "DecoratedCallable":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoratedCallable":
        return self


def _is_global(decorated: DecoratedCallable) -> bool:
    """Return whether it is the object of its module and qualified name."""
    module, qualname = getattr(decorated, "__module__", None), getattr(decorated, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return False
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found is decorated
