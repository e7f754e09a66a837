"""Description of the path from an object to its root.

How each holder is called, by which attribute, key, variable or cell it holds the object, what such a holder usually
means, and the source line where it is made. No code of an inspected object runs.
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
    LRU_CACHE,
    REVERSE_ITERATORS,
    attribute_of,
    attributes_of,
    class_items,
    generator_kind,
    instance_dict,
    is_any_of,
    is_kind,
    key_text,
    length_of,
    newest_items,
    printable_name,
    real_type,
    type_name,
)

_NAMED: Final[tuple[type, ...]] = (types.MethodType, LRU_CACHE, functools.partial)
# Items of a long container among which the held object is searched, the newest first.
_MAX_ITEMS: Final = 200_000
_OPTIMIZED: Final = 0x1  # inspect.CO_OPTIMIZED: the variables of the frame are not kept in a dict
_HELD_BY_FRAME: Final = 3  # references: of the frame, of the variable in `locals_of`, of the argument of `getrefcount`


def hint_for(path: Sequence[object], names: Sequence[str]) -> str:
    """Return what such a path usually means and what to change; empty if the pattern is not known.

    Args:
        path: the objects from the inspected one to the root.
        names: the descriptions of the holders, the nearest first.
    """
    text = " <- ".join(names)
    return next((hint for matches, hint in _PATTERNS if matches(path, text)), "")


def filling_cache(path: Sequence[object]) -> str:
    """Describe a bounded cache on the path that is not full yet: its growth is no leak. Empty if there is none."""
    for holder in path:
        if real_type(holder) is LRU_CACHE:
            _, _, maxsize, size = LRU_CACHE.cache_info(holder)  # a C method, which calls no code of the program
            if maxsize is not None and size < maxsize:
                return f"an lru_cache that may have {maxsize:,} entries and has {size:,}"
    return ""


def _includes(module: str, name: str) -> Callable[[Sequence[object], str], bool]:
    return lambda path, _: any(is_kind(real_type(holder), module, name) for holder in path)


def _mentions(*words: str) -> Callable[[Sequence[object], str], bool]:
    return lambda _, text: any(word in text for word in words)


def _is_method_cache(path: Sequence[object], text: str) -> bool:
    return any(real_type(holder) is LRU_CACHE for holder in path) and "lru_cache wrapper" in text and "class " in text


def _includes_exception(path: Sequence[object], _: str) -> bool:
    classes = map(real_type, path)
    return any(cls is types.TracebackType or issubclass(cls, BaseException) for cls in classes)


def _includes_queue(path: Sequence[object], text: str) -> bool:
    return "Queue._queue" in text or "Queue.queue" in text or _includes("_queue", "SimpleQueue")(path, text)


_PATTERNS: Final[tuple[tuple[Callable[[Sequence[object], str], bool], str], ...]] = (
    (_is_method_cache, "lru_cache on a method keeps self: cache on the instance, or weakly"),
    (_mentions("lru_cache wrapper"), "lru_cache keeps its arguments and results: give it a maxsize"),
    (
        _mentions("__warningregistry__"),
        "a warning with a new text each time is stored for good: warn with a constant text",
    ),
    (_mentions("finalize._registry"), "weakref.finalize keeps its arguments: none of them may refer to the object"),
    (
        _mentions("singledispatch", "dispatch_cache"),
        "singledispatch stores each type that it has seen: do not make types at run time",
    ),
    (_mentions("loggerDict", "Manager.loggerMap"), "a logger with a new name is kept for good: name loggers by module"),
    (_mentions(".handlers"), "handlers are added and never removed: add a handler once, or call removeHandler"),
    (_mentions("._metrics", "_labelvalues"), "label values are kept for good: use few, or remove() them"),
    (_includes_queue, "an unbounded queue: give it a maxsize, or find out why its consumer is slower"),
    (
        _mentions("._scheduled", "TimerHandle"),
        "a timer keeps its arguments until it is due: cancel it when it is no longer needed",
    ),
    (_mentions("_ncallbacks", "atexit"), "functions registered with atexit are kept until exit: unregister them"),
    (
        _includes_exception,
        "an exception keeps its traceback, and with it the variables of each frame: keep str(error) instead",
    ),
    (
        _includes("_asyncio", "Task"),
        "tasks are kept after their end, or never end: discard each when it is done, or use task_scope",
    ),
    (_includes("threading", "Thread"), "a thread that does not end keeps what its function holds"),
    (
        _mentions("Context", "hamt"),
        "a task or callback keeps the context that it was started in: reset the variable, or start it in another one",
    ),
    (_mentions("_local"), "thread-local values live as long as the thread: delete them when its work is done"),
)


def describe_path(path: Sequence[object], module: str | None) -> tuple[str, ...]:
    """Return the descriptions of the holders of `path[0]`, the nearest first.

    Args:
        path: the object, a referrer of it, and so on, up to a root.
        module: the name of the module whose dict the root is, if it is one.
    """
    names: list[str] = []
    index = 1
    while index < len(path):
        text, described = _describe_holder(path, index, module if index == len(path) - 1 else None)
        if text:
            names.append(text)
        index += described
    return tuple(names)


def _describe_holder(path: Sequence[object], index: int, module: str | None) -> tuple[str, int]:
    # Returns the text, and how many objects of the path it describes: an instance and its dict are one holder, and so
    # are a function, its closure and the cell in it.
    child, holder = path[index - 1], path[index]
    # Any: read by its exact type only
    above: Any = path[index + 1] if index + 1 < len(path) else None
    cls = real_type(holder)
    if module is not None:
        return f"{module}.{_plain_key(_key_of(child, holder))}", 1
    if issubclass(cls, dict) and above is not None:
        text = _describe_owner_of_dict(child, holder, above)
        if text:
            return text, 2
    if cls is types.CellType:
        return "", 1
    if cls is tuple and above is not None and real_type(above) is types.FunctionType and above.__closure__ is holder:
        return f"closure of {describe_object(above)}, {_variable_in(child, above)}", 2
    return _describe_single(child, holder), 1


def _describe_owner_of_dict(child: object, found: Any, owner: object) -> str:
    key = _plain_key(_key_of(child, found))
    if issubclass(real_type(owner), type):
        return f"class {type_name(owner)}.{key}"  # type: ignore[arg-type]  # it is a class
    if instance_dict(owner) is not found:
        return ""
    return f"{describe_object(owner)}.{key}"


def _describe_single(child: object, holder: Any) -> str:
    cls = real_type(holder)
    name = describe_object(holder)
    generator = generator_kind(cls)
    if generator is not None:
        variable = _local_of(child, getattr(holder, generator[1]))
        return f"{name}, {variable}" if variable else name
    if cls is types.FrameType:
        variable = _local_of(child, holder)
        return f"{name}, {variable}" if variable else name
    if issubclass(cls, dict):
        return f"{type_name(real_type(holder))}[{_key_of(child, holder)}]"
    if issubclass(cls, (list, tuple, deque)):
        return f"{type_name(real_type(holder))}[{_index_of(child, holder)}]"
    if issubclass(cls, (set, frozenset)) or is_any_of(cls, _NAMED):
        return name
    if issubclass(real_type(holder), type):
        return f"class {type_name(holder)}{_member(child, class_items(holder).items())}"
    if cls is types.FunctionType:
        return f"{name}{_part_of_function(child, holder)}"
    return f"{name}{_member(child, attributes_of(holder))}"


def describe_object(found: Any) -> str:  # Any: read by its exact type only
    """Return the description of an object by itself."""
    cls = real_type(found)
    generator = generator_kind(cls)
    if generator is not None:
        kind, frame = generator
        running = getattr(found, frame)
        where = f" at line {running.f_lineno}" if running is not None else ""
        return f"{kind} {printable_name(found.__qualname__)}{where}"
    if cls is types.FrameType:
        return f"frame of {found.f_code.co_qualname} at line {found.f_lineno}"
    if cls is types.ModuleType:
        return printable_name(attribute_of(found, "__name__"), "a module")
    if issubclass(real_type(found), type):
        return f"class {type_name(found)}"
    if cls is types.FunctionType:
        return f"function {printable_name(found.__qualname__)}"
    if cls is types.MethodType:
        return f"bound method {_function_name(found.__func__)}"
    if cls is LRU_CACHE:
        return f"lru_cache wrapper of {_function_name(attribute_of(found, '__wrapped__'))}"
    if cls is functools.partial:
        return f"partial of {_function_name(found.func)}"
    if is_kind(cls, "_asyncio", "Task"):
        return f"task {printable_name(sys.modules['_asyncio'].Task.get_name(found))!r}"
    if is_kind(cls, "threading", "Thread"):
        return f"thread {printable_name(attribute_of(found, '_name'))!r}"
    return type_name(cls)


def _function_name(function: Any) -> str:
    if real_type(function) is types.FunctionType:
        return printable_name(function.__qualname__)
    return type_name(real_type(function))


def _key_of(child: object, found: Any) -> str:
    for number, (key, value) in enumerate(newest_items(found)):
        if value is child:
            return key_text(key)
        if key is child:
            return f"as the key {key_text(key)}"
        if number > _MAX_ITEMS:
            break
    return "…"


def _plain_key(key: str) -> str:
    # The names of attributes and variables are keys that need no quotes.
    return key[1:-1] if key.startswith("'") and key.endswith("'") else f"[{key}]"


def _index_of(child: object, found: Any) -> str:
    kind = next(kind for kind in (*REVERSE_ITERATORS, *ITERATORS) if issubclass(real_type(found), kind))
    items = (REVERSE_ITERATORS.get(kind) or ITERATORS[kind])(found)
    try:
        index = next((index for index, item in enumerate(islice(items, _MAX_ITEMS)) if item is child), None)
    except RuntimeError:
        return "…"  # another thread changed the container
    if index is None:
        return "…"
    return str(index if kind is tuple else length_of(found) - 1 - index)


def _member(child: object, members: Any) -> str:
    return next((f".{printable_name(name)}" for name, value in members if value is child), "")


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
    return f"variable {printable_name(name)}" if name else ""


def locals_of(frame: types.FrameType) -> list[tuple[str, object]]:
    """Return the variables of a frame.

    Before Python 3.13, `f_locals` makes a snapshot, which would keep every variable alive until the function returns.
    It is cleared again unless other code refers to it.
    """
    found = frame.f_locals
    items = list(found.items())
    is_snapshot = sys.version_info < (3, 13) and frame.f_code.co_flags & _OPTIMIZED
    if is_snapshot and sys.gettrace() is None and frame.f_trace is None and sys.getrefcount(found) <= _HELD_BY_FRAME:
        found.clear()
    return items


def source_line(holder: str) -> str:
    """Return `file:line` where a holder such as `shop.Desk.orders` or `shop.registry` is made, empty if not found.

    Globals and attributes of classes and instances are found, in the file as it is now.
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
        if real_type(module) is ModuleType:
            return module, parts[length:]
    # Classes of the program that was started are named without their module.
    main = sys.modules.get("__main__")
    return (main, parts) if real_type(main) is ModuleType else (None, parts)


def _search(module: ModuleType, pattern: str, *, after: str = "") -> str:
    path = attribute_of(module, "__file__")
    if real_type(path) is not str or not path.endswith(".py"):
        return ""
    is_reached = not after
    for number, line in enumerate(linecache.getlines(path), 1):
        is_reached = is_reached or re.match(after, line) is not None
        if is_reached and re.match(pattern, line):
            return f"{path}:{number}"
    return ""
