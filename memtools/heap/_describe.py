"""Put the way from an object to its root into words.

Covers: what each holder is called, by which attribute, key, variable or cell it holds, and what such a holder usually
means.
Leaves to others: finding the way (`_climbing`).

Nothing of a stranger's is called here; see `_looking`.
"""

import functools
import linecache
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from types import ModuleType
from typing import Any, Final

from memtools.heap._inspect import (
    ITERATORS,
    LRU,
    REVERSED,
    attribute_of,
    attributes_of,
    class_items,
    class_of,
    instance_dict,
    is_kind,
    is_one_of,
    key_text,
    length_of,
    newest_items,
    plain_name,
    stepper,
    type_name,
)

# What a way to a root usually means, and the line to change.
#
# Covers: the patterns that leak again and again, known by the holders on the way.
# Leaves to others: finding and naming the way (`_climbing`, `_naming`).


def hint_for(way: Sequence[object], names: Sequence[str]) -> str:
    """Return what to do about it; empty where nothing better can be said than who keeps it.

    Args:
        way: the objects from the one asked about up to the root.
        names: the holders in words, the nearest first.
    """
    told = " <- ".join(names)
    return next((hint for known, hint in _PATTERNS if known(way, told)), "")


def filling(way: Sequence[object]) -> str:
    """Return which bounded cache on the way is not full yet, empty if there is none: what it holds is no leak."""
    for one in way:
        if class_of(one) is LRU:
            _, _, most, now = LRU.cache_info(one)  # a method in C, which calls nothing of the user's
            if most is not None and now < most:
                return f"an lru_cache that may have {most:,} entries and has {now:,}"
    return ""


def _has(module: str, name: str) -> Callable[[Sequence[object], str], bool]:
    return lambda way, _: any(is_kind(class_of(one), module, name) for one in way)


def _tells(*words: str) -> Callable[[Sequence[object], str], bool]:
    return lambda _, told: any(word in told for word in words)


def _is_cache_of_a_method(way: Sequence[object], told: str) -> bool:
    return any(class_of(one) is LRU for one in way) and "lru_cache wrapper" in told and "class " in told


def _is_exception(way: Sequence[object], _: str) -> bool:
    return any(class_of(one) is types.TracebackType or issubclass(class_of(one), BaseException) for one in way)


def _starts_with_queue(way: Sequence[object], told: str) -> bool:
    return "Queue._queue" in told or "Queue.queue" in told or _has("_queue", "SimpleQueue")(way, told)


_PATTERNS: Final[tuple[tuple[Callable[[Sequence[object], str], bool], str], ...]] = (
    (_is_cache_of_a_method, "lru_cache on a method keeps self: cache on the instance, or weakly"),
    (_tells("lru_cache wrapper"), "lru_cache keeps its arguments and results: give it a maxsize"),
    (
        _tells("__warningregistry__"),
        "a warning of a new text each time is remembered for good: warn with a constant text",
    ),
    (_tells("finalize._registry"), "weakref.finalize keeps its arguments: none of them may lead back to the object"),
    (
        _tells("singledispatch", "dispatch_cache"),
        "singledispatch remembers each type it has seen: register types that last",
    ),
    (_tells("loggerDict", "Manager.loggerMap"), "a logger of a new name is kept for good: name loggers by module"),
    (_tells(".handlers"), "handlers are added and never removed: add it once, or removeHandler when done"),
    (_tells("._metrics", "_labelvalues"), "label values are never forgotten: use few, or remove() them"),
    (_starts_with_queue, "an unbounded queue: give it a maxsize, or see why its consumer is slower"),
    (
        _tells("._scheduled", "TimerHandle"),
        "a timer keeps its arguments until it is due: cancel it when it is not needed",
    ),
    (_tells("_ncallbacks", "atexit"), "what is registered at exit is kept until then: unregister it"),
    (_is_exception, "an exception keeps its traceback, and with it every variable on the way: keep str(error) instead"),
    (_has("_asyncio", "Task"), "tasks are kept or never end: discard each when it is done, or use task_scope"),
    (_has("threading", "Thread"), "a thread that does not end keeps what its function holds"),
    (
        _tells("Context", "hamt"),
        "a context is kept by whatever was started in it: reset the variable, or start with a context of its own",
    ),
    (_tells("_local"), "a thread's local values live as long as the thread: drop them when its work is done"),
)

_NAMED: Final[tuple[type, ...]] = (types.MethodType, LRU, functools.partial)
# Items looked at for the place of one in a long container; the newest are looked at first.
_MOST_ITEMS: Final = 200_000


def name_way(way: Sequence[object], module: str | None) -> tuple[str, ...]:
    """Return the holders of `way[0]`, the nearest first.

    Args:
        way: the object, who refers to it, and so on, up to a root.
        module: the name of the module whose dict the root is, if it is one.
    """
    names: list[str] = []
    place = 1
    while place < len(way):
        text, taken = _name_holder(way, place, module if place == len(way) - 1 else None)
        if text:
            names.append(text)
        place += taken
    return tuple(names)


def _name_holder(way: Sequence[object], place: int, module: str | None) -> tuple[str, int]:
    # One holder may take several objects: an instance and its dict, a function, its closure and the cell in it.
    child, holder = way[place - 1], way[place]
    # Any: looked at by its exact type only
    above: Any = way[place + 1] if place + 1 < len(way) else None
    cls = class_of(holder)
    if module is not None:
        return f"{module}.{_plain_key(_key_of(child, holder))}", 1
    if issubclass(cls, dict) and above is not None:
        named = _name_owner_of_dict(child, holder, above)
        if named:
            return named, 2
    if cls is types.CellType:
        return "", 1
    if cls is tuple and above is not None and class_of(above) is types.FunctionType and above.__closure__ is holder:
        return f"closure of {name_thing(above)}, {_variable_in(child, above)}", 2
    return _name_plain(child, holder), 1


def _name_owner_of_dict(child: object, found: Any, owner: object) -> str:
    key = _plain_key(_key_of(child, found))
    if issubclass(class_of(owner), type):
        return f"class {type_name(owner)}.{key}"  # type: ignore[arg-type]  # it is a class
    if instance_dict(owner) is not found:
        return ""
    return f"{name_thing(owner)}.{key}"


def _name_plain(child: object, holder: Any) -> str:
    cls = class_of(holder)
    name = name_thing(holder)
    words = stepper(cls)
    if words is not None:
        variable = _local_of(child, getattr(holder, words[1]))
        return f"{name}, {variable}" if variable else name
    if cls is types.FrameType:
        variable = _local_of(child, holder)
        return f"{name}, {variable}" if variable else name
    if issubclass(cls, dict):
        return f"{type_name(class_of(holder))}[{_key_of(child, holder)}]"
    if issubclass(cls, (list, tuple, deque)):
        return f"{type_name(class_of(holder))}[{_index_of(child, holder)}]"
    if issubclass(cls, (set, frozenset)) or is_one_of(cls, _NAMED):
        return name
    if issubclass(class_of(holder), type):
        return f"class {type_name(holder)}{_member(child, class_items(holder).items())}"
    if cls is types.FunctionType:
        return f"{name}{_part_of_function(child, holder)}"
    return f"{name}{_member(child, attributes_of(holder))}"


def name_thing(thing: Any) -> str:  # Any: looked at by its exact type only
    """Return what a single object is called."""
    cls = class_of(thing)
    words = stepper(cls)
    if words is not None:
        kind, frame = words
        running = getattr(thing, frame)
        where = f" at line {running.f_lineno}" if running is not None else ""
        return f"{kind} {plain_name(thing.__qualname__)}{where}"
    if cls is types.FrameType:
        return f"frame of {thing.f_code.co_qualname} at line {thing.f_lineno}"
    if cls is types.ModuleType:
        return plain_name(attribute_of(thing, "__name__"), "a module")
    if issubclass(class_of(thing), type):
        return f"class {type_name(thing)}"
    if cls is types.FunctionType:
        return f"function {plain_name(thing.__qualname__)}"
    if cls is types.MethodType:
        return f"bound method {_function_name(thing.__func__)}"
    if cls is LRU:
        return f"lru_cache wrapper of {_function_name(attribute_of(thing, '__wrapped__'))}"
    if cls is functools.partial:
        return f"partial of {_function_name(thing.func)}"
    if is_kind(cls, "_asyncio", "Task"):
        return f"task {plain_name(sys.modules['_asyncio'].Task.get_name(thing))!r}"
    if is_kind(cls, "threading", "Thread"):
        return f"thread {plain_name(attribute_of(thing, '_name'))!r}"
    return type_name(cls)


def _function_name(function: Any) -> str:
    if class_of(function) is types.FunctionType:
        return plain_name(function.__qualname__)
    return type_name(class_of(function))


def _key_of(child: object, found: Any) -> str:
    for place, (key, value) in enumerate(newest_items(found)):
        if value is child:
            return key_text(key)
        if key is child:
            return f"as the key {key_text(key)}"
        if place > _MOST_ITEMS:
            break
    return "…"


def _plain_key(key: str) -> str:
    # The names of attributes and variables are keys that need no quotes.
    return key[1:-1] if key.startswith("'") and key.endswith("'") else f"[{key}]"


def _index_of(child: object, found: Any) -> str:
    kind = next(kind for kind in (*REVERSED, *ITERATORS) if issubclass(class_of(found), kind))
    items = (REVERSED.get(kind) or ITERATORS[kind])(found)
    try:
        place = next((place for place, item in enumerate(islice(items, _MOST_ITEMS)) if item is child), None)
    except RuntimeError:
        return "…"  # another thread changed it: the place is not worth a second try
    if place is None:
        return "…"
    return str(place if kind is tuple else length_of(found) - 1 - place)


def _member(child: object, members: Any) -> str:
    return next((f".{plain_name(name)}" for name, value in members if value is child), "")


def _part_of_function(child: object, function: types.FunctionType) -> str:
    if child is function.__defaults__ or child is function.__kwdefaults__:
        return ", a default"
    if child is instance_dict(function):
        return ", an attribute"
    return ", its globals" if child is function.__globals__ else ""


def _variable_in(child: object, function: types.FunctionType) -> str:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        if child is cell:
            return f"variable {name}"
    return "a variable"


def _local_of(child: object, frame: types.FrameType | None) -> str:
    if frame is None:
        return ""
    name = next((name for name, value in locals_of(frame) if value is child), None)
    return f"variable {plain_name(name)}" if name else ""


def locals_of(frame: types.FrameType) -> list[tuple[str, object]]:
    """Return the variables of a frame.

    Before 3.13 asking makes a snapshot, which would keep every variable alive until the frame ends. It is emptied
    again where nobody else has it.
    """
    found = frame.f_locals
    items = list(found.items())
    is_snapshot = sys.version_info < (3, 13) and frame.f_code.co_flags & _OPTIMIZED
    if is_snapshot and sys.gettrace() is None and frame.f_trace is None and sys.getrefcount(found) <= _HELD_BY_FRAME:
        found.clear()
    return items


_OPTIMIZED: Final = 0x1  # CO_OPTIMIZED: the variables of the frame are not in a dict of their own
_HELD_BY_FRAME: Final = 3  # references: the frame's, the variable's above, the argument of `getrefcount`


# The line of the program where a holder is made.
#
# Covers: globals, attributes of classes and of instances, by the name that an answer gives them.
# Leaves to others: those names (`_naming`).


def source_line(holder: str) -> str:
    """Return `file:line` where a holder such as `shop.Desk.orders` or `shop.registry` is made, empty if not found.

    The file is read as it is now.
    """
    module, names = _module_of(holder.removeprefix("class "))
    if module is None or not 1 <= len(names) <= 2:
        return ""
    name = re.escape(names[-1])
    if len(names) == 1:
        return _search(module, rf"^{name}\s*[:=]")
    return _search(module, rf"^\s+(self\.|cls\.)?{name}\s*[:=]", after=rf"^\s*class {re.escape(names[0])}\b")


def _module_of(holder: str) -> tuple[ModuleType | None, list[str]]:
    parts = holder.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:length]))
        if class_of(module) is ModuleType:
            return module, parts[length:]
    # Classes of the program that was started are named without their module.
    main = sys.modules.get("__main__")
    return (main, parts) if class_of(main) is ModuleType else (None, parts)


def _search(module: ModuleType, pattern: str, *, after: str = "") -> str:
    path = attribute_of(module, "__file__")
    if class_of(path) is not str or not path.endswith(".py"):
        return ""
    is_reached = not after
    for number, line in enumerate(linecache.getlines(path), 1):
        is_reached = is_reached or re.match(after, line) is not None
        if is_reached and re.match(pattern, line):
            return f"{path}:{number}"
    return ""
