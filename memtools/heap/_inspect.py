"""Look at strangers' objects without touching them.

Covers: types, names, lengths and attributes of objects whose own methods must not run: no `repr`, no attribute access,
no `len()`, no `isinstance`, no comparison and no hash of theirs.
Leaves to others: which objects are looked at (`_census`, `_climbing`).

`isinstance(x, dict)` asks `x.__class__`, a set of classes asks their metaclass for a hash, `cls.__name__` may be a
property of the metaclass. `type(x)`, `issubclass` between real classes, and the slots of `type` itself ask nobody.
"""

import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, compress, islice
from operator import not_
from typing import Any, Final

from memtools._gc import unfreeze

# Descriptors of `type` itself, called by hand so that no metaclass is asked.
_name_of: Final = type.__dict__["__qualname__"].__get__
_module_of: Final = type.__dict__["__module__"].__get__
_mro_of: Final = type.__dict__["__mro__"].__get__
_dict_of: Final = type.__dict__["__dict__"].__get__
_module_dict_of: Final[Callable[[Any], dict[str, Any]]] = _dict_of(types.ModuleType)["__dict__"].__get__

MAX_TEXT: Final = 120  # characters of a name of the user's; nested classes have long ones
MAX_KEY: Final = 60  # characters of a key

# What is asked of containers by the methods of their built-in class, not by those of a subclass.
_items_of: Final[Callable[[Any], Any]] = vars(dict)["items"]
ITERATORS: Final[dict[type, Callable[[Any], Iterator[Any]]]] = {
    set: vars(set)["__iter__"],
    tuple: vars(tuple)["__iter__"],
}
REVERSED: Final[dict[type, Callable[[Any], Iterator[Any]]]] = {
    list: vars(list)["__reversed__"],
    deque: vars(deque)["__reversed__"],
}

_PLAIN: Final = (int, float, bool, bytes, type(None))

# The containers that grow without end, and the length that asks no subclass.
LENGTHS: Final[dict[type, Callable[[Any], int]]] = {  # Any: each takes its own kind
    dict: vars(dict)["__len__"],
    list: vars(list)["__len__"],
    set: vars(set)["__len__"],
    deque: vars(deque)["__len__"],
}


def class_of(thing: object) -> type[Any]:  # Any: a checker that narrows by it would only lose track
    """Return the real class of an object, whatever its `__class__` says."""
    return type(thing)


def all_objects(generation: int | None = None) -> list[Any]:
    """Return the objects that collections know, all or those of one generation."""
    unfreeze()
    return gc.get_objects(generation)


def without_modules(objects: list[Any]) -> Iterator[Any]:
    """Return all but the modules, to be asked whom they refer to.

    `gc.get_referents` of the module `_asyncio` of CPython 3.12.1 shows dead objects of its free lists; giving those
    back corrupts the list, and the next walk over all objects never ends. What a module holds is in its dict as well.
    """
    types_ = list(map(type, objects))
    modules = {
        id(cls) for cls in dict(zip(map(id, types_), types_, strict=True)).values() if issubclass(cls, types.ModuleType)
    }
    return compress(objects, map(not_, map(modules.__contains__, map(id, types_))))


def is_one_of(cls: type, kinds: Iterable[type]) -> bool:
    """Return whether `cls` is among `kinds`; `in` would ask its metaclass for `==` or for a hash."""
    return any(cls is kind for kind in kinds)


def kind_of(cls: type) -> type | None:
    """Return the container that `cls` is or derives from, None for all else."""
    for kind in LENGTHS:
        if issubclass(cls, kind):
            return kind
    return None


def length_of(thing: object) -> int:
    """Return the length of a container of a kind in `LENGTHS`, 0 for all else."""
    kind = kind_of(class_of(thing))
    return LENGTHS[kind](thing) if kind is not None else 0


def type_name(cls: type) -> str:
    """Return the name of a class: bare for built-ins, with its module for the others."""
    name = _plain(_name_of(cls))
    try:
        module = _module_of(cls)
    except AttributeError:
        module = ""
    if class_of(module) is not str or module in ("builtins", "__main__", ""):
        return name
    return f"{module}.{name}"


def attributes_of(thing: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes that an object itself holds, by name: of its dict and of its slots.

    An object that keeps its attributes in place gets its dict from this; it would get it from `vars()` as well.
    """
    for cls in _mro_of(class_of(thing)):
        for name, member in _dict_of(cls).items():
            if class_of(member) is types.MemberDescriptorType:
                try:
                    yield _plain(name), member.__get__(thing)
                except AttributeError:
                    continue  # a slot without a value
    yield from newest_items(instance_dict(thing) or {})


def instance_dict(thing: object) -> dict[str, object] | None:
    """Return the dict of an instance where the class has it the ordinary way, else None."""
    if issubclass(class_of(thing), types.ModuleType):
        return _module_dict_of(thing)
    for cls in _mro_of(class_of(thing)):
        member = _dict_of(cls).get("__dict__")
        if member is None:
            continue
        if class_of(member) is not types.GetSetDescriptorType:
            return None  # a property of the user's
        found = member.__get__(thing)
        return found if class_of(found) is dict else None
    return None


def attribute_of(thing: object, name: str) -> Any:  # Any: whatever is kept under that name
    """Return one attribute from the dict of an instance, None where it has none of that name."""
    return (instance_dict(thing) or {}).get(name)


def class_items(cls: type) -> Mapping[str, object]:
    """Return the dict of a class."""
    found: Mapping[str, object] = _dict_of(cls)
    return found


def newest_items(found: dict[Any, object]) -> Iterator[tuple[Any, object]]:  # Any: whatever is a key there
    """Yield the items of a dict, the newest first; ends early where another thread changes it meanwhile."""
    items = reversed(_items_of(found))
    while True:
        try:
            item = next(items)
        except (StopIteration, RuntimeError):
            return
        yield item


def key_text(key: Any) -> str:  # Any: read by its exact type only
    """Return how a key reads: plain values as they are, cut; all else by its type."""
    if class_of(key) is str:
        return repr(_cut(_plain(key), MAX_KEY))
    if class_of(key) is int and key.bit_length() > 200:
        return "<a long int>"  # thousands of digits would be an error
    if is_one_of(class_of(key), _PLAIN):
        return _cut(repr(key[:MAX_KEY]) if class_of(key) is bytes else repr(key), MAX_KEY)
    if class_of(key) is tuple:
        parts = [key_text(part) for part in key[:4]]
        return _cut(f"({', '.join(parts)}{', …' if len(key) > 4 else ''})", MAX_KEY)
    return f"<{type_name(class_of(key))}>"


def plain_name(value: object, otherwise: str = "?") -> str:
    """Return a name that is a real string, cut and printable; else `otherwise`."""
    return _plain(value) if issubclass(class_of(value), str) else otherwise


def _plain(text: Any) -> str:  # Any: a str, or a subclass of it with methods of its own
    head = str.__getitem__(text, slice(MAX_TEXT))
    return _cut("".join(char if char.isprintable() else "?" for char in head), MAX_TEXT)


def _cut(text: str, most: int) -> str:
    return text if len(text) < most else text[: most - 1] + "…"


# The kinds of holders that are known by their class, some of them of modules that may not be loaded.
#
# Leaves to others: what they are called (`_naming`), where a climb stops (`_climbing`), what they mean (`_hints`).

LRU: Final[Any] = class_of(functools.lru_cache(lambda: None))  # Any: it has no name

# What each is called, and the attribute that holds its frame.
STEPPERS: Final[dict[type, tuple[str, str]]] = {
    types.CoroutineType: ("coroutine", "cr_frame"),
    types.GeneratorType: ("generator", "gi_frame"),
    types.AsyncGeneratorType: ("async generator", "ag_frame"),
}


def stepper(cls: type) -> tuple[str, str] | None:
    """Return what a coroutine or generator is called and which attribute holds its frame, None for all else."""
    return next((words for kind, words in STEPPERS.items() if cls is kind), None)


def is_kind(cls: type, module: str, name: str) -> bool:
    """Return whether `cls` is or derives from a class of a module that may not be loaded."""
    known: Any = attribute_of(sys.modules.get(module), name)  # Any: of that name there might be something else
    return class_of(known) is type and issubclass(cls, known)


# What a container and its items weigh: its own size, and that of its items by a sample of them, shallow.
#
# No method of a stranger is called: what is no built-in object counts with the size that its class gives each.

_SAMPLE: Final = 200  # items that stand for all
_BUILT_IN: Final = (
    str, bytes, int, float, complex, bool, list, dict, set, tuple, frozenset, bytearray, type(None)
)  # fmt: skip
_basic_size_of: Final[Any] = type.__dict__["__basicsize__"].__get__


def shallow_size(container: object) -> int:
    """Return the bytes of a container and its items, the newest of them standing for all; 0 for what is none."""
    kind = kind_of(class_of(container))
    if kind is None:
        return 0
    try:
        if kind is dict:
            sample = list(islice(newest_items(container), _SAMPLE))  # type: ignore[arg-type]  # it is a dict
            items = sum(map(_size, chain.from_iterable(sample)))
        else:
            sample = list(islice((ITERATORS.get(kind) or REVERSED[kind])(container), _SAMPLE))
            items = sum(map(_size, sample))
    except RuntimeError:
        return 0  # another thread changed it
    return _size_of_itself(container, kind) + (items * length_of(container) // len(sample) if sample else 0)


def _size(thing: object) -> int:
    cls = class_of(thing)
    return sys.getsizeof(thing) if is_one_of(cls, _BUILT_IN) else int(_basic_size_of(cls))


def _size_of_itself(container: Any, kind: type[Any]) -> int:
    return int(vars(kind)["__sizeof__"](container))
