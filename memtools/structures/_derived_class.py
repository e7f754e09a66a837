"""The class of the structures that need more bookkeeping than the class that the program named.

A file of its own because lists and dictionaries share it, and neither may import the other.
"""

from abc import ABCMeta
from typing import Any, TypeVar, cast

C = TypeVar("C")


class _QuietBase:
    """A first base that keeps `type.__new__` from the `__init_subclass__` of the other bases."""

    __slots__ = ()

    def __init_subclass__(cls) -> None: ...


def derived_class(public_class: type[C], mixin: type[Any]) -> type[C]:
    """Return the class of the structures of `public_class` that have the methods of `mixin`; the same each time.

    The mixin comes after `public_class` in the order of methods, so that overrides come first and reach it by
    `super()`. The program has not written this class: neither `__init_subclass__`, which may require arguments or
    register what it is given, nor `__new__`, `__init__` and `__setattr__` of a metaclass are called for it.

    Args:
        public_class: the class that the program named.
        mixin: a class of the same layout; one for each `public_class`.
    """
    found = public_class.__dict__.get("_derived_class")
    if found is None:
        metaclass = cast("type[type]", type(public_class))
        names: dict[str, Any] = {
            "__slots__": (),
            "__module__": public_class.__module__,
            "__qualname__": public_class.__qualname__,
        }
        if issubclass(metaclass, ABCMeta):
            names["_abc_impl"] = cast("Any", ABCMeta("Scratch", (), {}))._abc_impl  # what ABCMeta.__new__ would add
        bases = (public_class, mixin)
        found = type.__new__(metaclass, public_class.__name__, (_QuietBase, *bases), names)
        type.__setattr__(found, "__bases__", bases)
        type.__setattr__(found, "_public_class", public_class)
        type.__setattr__(public_class, "_derived_class", found)  # a cache on the class of the user
    return cast("type[C]", found)


def public_class_of(cls: type[Any]) -> type[Any]:
    """Return the class that the program named, for the class of a structure."""
    public_class: type[Any] = cls.__dict__.get("_public_class", cls)
    return public_class
