"""The decorator for frozen records.

To its users a record is a frozen dataclass with slots: `dataclasses.fields`, `asdict` and `replace` accept it, it is
compared, hashed, printed, pickled and matched by its fields, and assigning to a field raises `FrozenInstanceError`.

`dataclasses.dataclass` is not used because it compiles six methods for each class while the module is imported, 0.4 ms
a class: with some forty records that alone was more than `import memtools` may take (docs/performance.md, import). This
decorator compiles one method and shares the others, which takes an eighth of the time, and computes the field objects
of `dataclasses` on first use. It can be replaced when the standard library is as fast.
"""

from typing import Any, ClassVar, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Make a frozen record with slots of `cls`; its fields are its annotations, in order, with plain defaults."""
    annotations: dict[str, Any] = cls.__annotations__  # Any: types, or their text
    names = tuple(annotations)
    body = {name: value for name, value in vars(cls).items() if name not in (*names, "__dict__", "__weakref__")}
    defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}
    made: Any = type(cls)(  # type: ignore[misc]  # mypy cannot make a class by its own class
        cls.__name__,
        cls.__bases__,
        {**_SHARED, **body, "__qualname__": cls.__qualname__, "__slots__": names, "__match_args__": names},
    )
    made.__dataclass_fields__ = _LazyFields(defaults)
    made.__init__ = _make_init(made, names, defaults)
    result: type[T] = made
    return result


def as_dict(instance: Any) -> dict[str, object]:  # Any: records have no common class
    """Return the fields of a record by name; the values are not converted."""
    return dict(zip(instance.__match_args__, _values(instance), strict=True))


def _make_init(made: Any, names: tuple[str, ...], defaults: dict[str, Any]) -> Any:
    # The setters of the slots are faster than `object.__setattr__`, and they bypass the frozen `__setattr__`.
    scope: dict[str, Any] = {f"_set_{name}": getattr(made, name).__set__ for name in names}
    scope |= {f"_default_{name}": default for name, default in defaults.items()}
    parameters = (f"{name}=_default_{name}" if name in defaults else name for name in names)
    lines = (f" _set_{name}(self, {name})" for name in names)
    # Safe: the text consists of the field names of classes in memtools.
    exec(f"def __init__(self, {', '.join(parameters)}):\n" + "\n".join(lines), scope)
    initialiser: Any = scope["__init__"]
    initialiser.__qualname__ = f"{made.__qualname__}.__init__"
    initialiser.__module__ = made.__module__
    initialiser.__annotations__ = {**made.__annotations__, "return": None}
    return initialiser


class _LazyFields:
    """The fields as `dataclasses` defines them, computed on first access."""

    def __init__(self, defaults: dict[str, Any]) -> None:
        self._defaults = defaults

    def __get__(self, instance: object, owner: type[Any]) -> dict[str, Any]:
        from dataclasses import field, make_dataclass  # slow to load, and rarely needed

        copy = make_dataclass(
            owner.__name__,
            [
                (name, kind, field(default=self._defaults[name])) if name in self._defaults else (name, kind)
                for name, kind in owner.__annotations__.items()
            ],
        )
        owner.__dataclass_fields__ = vars(copy)["__dataclass_fields__"]
        fields: dict[str, Any] = owner.__dataclass_fields__
        return fields


class _SharedMethods:
    """The methods that do not depend on the fields."""

    __match_args__: ClassVar[tuple[str, ...]]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(_values(self))

    def __setattr__(self, name: str, value: object) -> None:
        raise _frozen(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise _frozen(f"cannot delete field {name!r}")

    def __reduce__(self) -> tuple[type[Any], tuple[Any, ...]]:
        return type(self), _values(self)

    def __replace__(self, **changes: Any) -> Any:
        return type(self)(**{name: getattr(self, name) for name in self.__match_args__} | changes)


_SHARED = {
    name: vars(_SharedMethods)[name]
    for name in ("__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__reduce__", "__replace__")
}


def _values(instance: Any) -> tuple[Any, ...]:
    return tuple([getattr(instance, name) for name in instance.__match_args__])


def _frozen(message: str) -> AttributeError:
    from dataclasses import FrozenInstanceError

    return FrozenInstanceError(message)
