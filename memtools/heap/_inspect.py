"""Inspection of foreign objects without running their code.

The methods of an inspected object must not run: no `repr`, no attribute access, no `len()`, no `isinstance`, no
comparison and no hash. `isinstance(x, dict)` reads `x.__class__`, a set of classes calls `__hash__` of their metaclass,
and `cls.__name__` may be a property of the metaclass. `type(x)`, `issubclass` between real classes, and the descriptors
of `type` itself call none of them.
"""

import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import compress
from operator import not_
from typing import Any, Final

from memtools._gc import unfreeze
from memtools._text import printable

# Descriptors of `type` itself, called explicitly so that no code of a metaclass runs.
_name_of: Final = type.__dict__["__qualname__"].__get__
_module_of: Final = type.__dict__["__module__"].__get__
_mro_of: Final = type.__dict__["__mro__"].__get__
_flags_of: Final[Any] = type.__dict__["__flags__"].__get__
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE in Include/object.h
_dict_of: Final = type.__dict__["__dict__"].__get__
_module_dict_of: Final[Callable[[Any], dict[str, Any]]] = _dict_of(types.ModuleType)["__dict__"].__get__

MAX_NAME_LENGTH: Final = 120  # characters; nested classes have long names
MAX_KEY_LENGTH: Final = 60  # characters

# Methods of the built-in containers, which a subclass cannot override.
_items_of: Final[Callable[[Any], Any]] = vars(dict)["items"]
ITERATORS: Final[dict[type, Callable[[Any], Iterator[Any]]]] = {
    set: vars(set)["__iter__"],
    tuple: vars(tuple)["__iter__"],
}
REVERSE_ITERATORS: Final[dict[type, Callable[[Any], Iterator[Any]]]] = {
    list: vars(list)["__reversed__"],
    deque: vars(deque)["__reversed__"],
}

_PLAIN_VALUES: Final = (int, float, bool, bytes, type(None))

# The containers that can grow, and their own `__len__`.
LENGTHS: Final[dict[type, Callable[[Any], int]]] = {  # Any: each takes its own type
    dict: vars(dict)["__len__"],
    list: vars(list)["__len__"],
    set: vars(set)["__len__"],
    deque: vars(deque)["__len__"],
}


LRU_CACHE: Final[Any] = type(functools.lru_cache(lambda: None))  # Any: the class has no public name

# How each kind of suspended function is called, and the attribute that holds its frame.
GENERATOR_KINDS: Final[dict[type, tuple[str, str]]] = {
    types.CoroutineType: ("coroutine", "cr_frame"),
    types.GeneratorType: ("generator", "gi_frame"),
    types.AsyncGeneratorType: ("async generator", "ag_frame"),
}

# On free-threaded builds `gc.get_objects` returns all objects for each generation.
_HAS_NO_GENERATIONS: Final = "free-threading" in sys.version
PACKAGE_FOLDER: Final = __file__.rpartition("_inspect")[0]


class OwnDict(dict[int, Any]):  # Any: foreign objects, numbers and names
    """A dict of this package, which no census counts and no walk takes for a holder."""

    __slots__ = ()


class OwnList(list[Any]):  # Any: foreign objects
    """A list of this package, for the same reason."""

    __slots__ = ()


def real_type(target: object) -> type[Any]:  # Any: type checkers must not narrow by it
    """Return the class of an object, whatever its `__class__` returns."""
    return type(target)


def all_objects(generation: int | None = None) -> list[Any]:
    """Return the objects that the garbage collector tracks, all or those of one generation."""
    unfreeze()
    if _HAS_NO_GENERATIONS and generation is not None:
        return gc.get_objects() if generation == 2 else []
    return gc.get_objects(generation)


def skip_modules(objects: list[Any]) -> Iterator[Any]:
    """Return the objects but for modules, so that `gc.get_referents` can be called with them.

    On CPython 3.12.1, `gc.get_referents` of the module `_asyncio` returns dead objects of its free lists; releasing
    them corrupts the lists, and the next walk over all objects never ends. What a module holds is in its dict as well.
    """
    types_ = list(map(type, objects))
    modules = {
        id(cls) for cls in dict(zip(map(id, types_), types_, strict=True)).values() if issubclass(cls, types.ModuleType)
    }
    return compress(objects, map(not_, map(modules.__contains__, map(id, types_))))


def is_any_of(cls: type, kinds: Iterable[type]) -> bool:
    """Return whether `cls` is one of `kinds`; `in` would call `__eq__` or `__hash__` of its metaclass."""
    return any(cls is kind for kind in kinds)


def container_kind(cls: type) -> type | None:
    """Return the built-in container that `cls` is or derives from, None for any other class."""
    for kind in LENGTHS:
        if issubclass(cls, kind):
            return kind
    return None


def length_of(target: object) -> int:
    """Return the length of a container of a type in `LENGTHS`, 0 for any other object."""
    kind = container_kind(real_type(target))
    return LENGTHS[kind](target) if kind is not None else 0


def type_name(cls: type) -> str:
    """Return the name of a class, with its module unless it is built in or of the main program."""
    name = _printable(_name_of(cls))
    try:
        module = _module_of(cls)
    except AttributeError:
        module = ""
    if real_type(module) is not str or module in ("builtins", "__main__", ""):
        return name
    return f"{module}.{name}"


def attributes_of(target: object) -> Iterator[tuple[str, object]]:
    """Yield the names and values of the attributes in the slots and the dict of an object.

    An object with inline attributes gets a dict by this, as it would by `vars()`.
    """
    for cls in _mro_of(real_type(target)):
        for name, member in _dict_of(cls).items():
            if real_type(member) is types.MemberDescriptorType:
                try:
                    yield _printable(name), member.__get__(target)
                except AttributeError:
                    continue  # a slot without a value
    yield from newest_items(instance_dict(target) or {})


def instance_dict(target: object) -> dict[str, object] | None:
    """Return the dict of an instance; None if its class has none, or replaces `__dict__`."""
    if issubclass(real_type(target), types.ModuleType):
        return _module_dict_of(target)
    for cls in _mro_of(real_type(target)):
        member = _dict_of(cls).get("__dict__")
        if member is None:
            continue
        if real_type(member) is not types.GetSetDescriptorType:
            return None  # a property of the program
        found = member.__get__(target)
        return found if real_type(found) is dict else None
    return None


def attribute_of(target: object, name: str) -> Any:  # Any: any object may be found
    """Return one attribute from the dict of an instance, None if it is not there."""
    return (instance_dict(target) or {}).get(name)


def class_items(cls: type) -> Mapping[str, object]:
    """Return the dict of a class."""
    found: Mapping[str, object] = _dict_of(cls)
    return found


def newest_items(found: dict[Any, object]) -> Iterator[tuple[Any, object]]:  # Any: keys of any type
    """Yield the items of a dict, the newest first; end early if another thread changes it meanwhile."""
    items = reversed(_items_of(found))
    while True:
        try:
            item = next(items)
        except (StopIteration, RuntimeError):
            return
        yield item


def key_text(key: Any, *, show_values: bool) -> str:  # Any: read by its exact type only
    """Return a key as text: type and length of text and bytes, other plain values, any other object as its type.

    Keys may be session tokens, or personal data: their values are for callers that ask for them.

    Args:
        key: any object.
        show_values: return plain values themselves, truncated.
    """
    if not show_values and is_any_of(real_type(key), (str, bytes)):
        return f"<{real_type(key).__name__}, {len(key):,} {'characters' if real_type(key) is str else 'bytes'}>"
    if not show_values and is_any_of(real_type(key), (int, float)):
        return f"<{real_type(key).__name__}>"
    if real_type(key) is str:
        return repr(_truncate(key, MAX_KEY_LENGTH))
    if real_type(key) is int and key.bit_length() > 200:
        return "<a long int>"  # `repr` raises ValueError for thousands of digits
    if is_any_of(real_type(key), _PLAIN_VALUES):
        return _truncate(repr(key[:MAX_KEY_LENGTH]) if real_type(key) is bytes else repr(key), MAX_KEY_LENGTH)
    if real_type(key) is tuple:
        parts = [key_text(part, show_values=show_values) for part in key[:4]]
        return _truncate(f"({', '.join(parts)}{', …' if len(key) > 4 else ''})", MAX_KEY_LENGTH)
    return f"<{type_name(real_type(key))}>"


def attribute_text(name: object) -> str:
    """Return the name of an attribute or variable; one that no code could spell is shown as a key."""
    if real_type(name) is str and len(name) <= MAX_NAME_LENGTH and name.isidentifier():  # type: ignore[arg-type,attr-defined]  # a str
        return printable_name(name)
    return f"[{key_text(name, show_values=False)}]"


def printable_name(value: object, otherwise: str = "?") -> str:
    """Return a name truncated and made printable; `otherwise` if it is not a string."""
    return _printable(value) if issubclass(real_type(value), str) else otherwise


def _printable(text: Any) -> str:  # Any: a str, or a subclass of it with methods of its own
    head = str.__getitem__(text, slice(MAX_NAME_LENGTH))
    return _truncate(printable(head), MAX_NAME_LENGTH)


def _truncate(text: str, length: int) -> str:
    return text if len(text) < length else text[: length - 1] + "…"


def generator_kind(cls: type) -> tuple[str, str] | None:
    """Return the entry of `GENERATOR_KINDS` for a class of coroutines or generators, None for any other class."""
    return next((entry for kind, entry in GENERATOR_KINDS.items() if cls is kind), None)


def is_own_frame(found: Any) -> bool:  # Any: read by its exact type only
    """Return whether an object is a frame, generator or coroutine of this package, which holds what it inspects."""
    cls = real_type(found)
    if cls is types.FrameType:
        code = found.f_code
    elif cls is types.GeneratorType:
        code = found.gi_code
    elif cls is types.CoroutineType:
        code = found.cr_code
    else:
        return False
    return bool(code.co_filename.startswith(PACKAGE_FOLDER))


def is_static(cls: type) -> bool:
    """Return whether a class is made by C code once and for all: no program has replaced any of its methods."""
    return not _flags_of(cls) & _HEAP_TYPE


def is_kind(cls: type, module: str, name: str) -> bool:
    """Return whether `cls` is or derives from the class `name` of `module`, which may not be loaded."""
    known: Any = attribute_of(sys.modules.get(module), name)  # Any: the program may have replaced it
    return real_type(known) is type and issubclass(cls, known)
