"""Description of the path from an object to its root.

How each holder is called, by which attribute, key, variable or cell it holds the object, what such a holder usually
means, and the source line where it is made. No code of an inspected object runs.
"""

import contextvars
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

from memtools._records import record
from memtools.heap._inspect import (
    ITERATORS,
    LRU_CACHE,
    REVERSE_ITERATORS,
    attribute_of,
    attribute_text,
    attributes_of,
    class_items,
    generator_kind,
    instance_dict,
    is_any_of,
    is_kind,
    is_static,
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
_FOLDED_FROM: Final = 3  # equal links
_LONGEST_GROUP: Final = 3  # names that are folded together
_LINKS_LOOKED_AT: Final = 16  # of a chain: they are alike
_BRACKETS: Final = re.compile(r"\[[^\]]*\]")
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


def _is_chain(_: Sequence[object], text: str) -> bool:
    return " times" in text


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
    (_is_chain, "a chain in which each link keeps the one before it: cut it, or keep the last few in a deque(maxlen=)"),
    (_includes("threading", "Thread"), "a thread that does not end keeps what its function holds"),
    (
        _mentions("ContextVar"),
        "a task or callback keeps the context that it was started in: reset the variable, or start it in another one",
    ),
    (_mentions("_local"), "thread-local values live as long as the thread: delete them when its work is done"),
)


@record
class LinksOfPath:
    """Where the links of a chain are in a path.

    Attributes:
        begin: the place of the first.
        end: the place behind the last.
        period: how many objects make a link.
    """

    begin: int
    end: int
    period: int


def describe_path(
    path: Sequence[object], module: str | None, *, show_values: bool = False, links: LinksOfPath | None = None
) -> tuple[str, ...]:
    """Return the descriptions of the holders of `path[0]`, the nearest first; what repeats is told once.

    Args:
        path: the object, a referrer of it, and so on, up to a root.
        module: the name of the module whose dict the root is, if it is one.
        show_values: show keys themselves, not their types and lengths.
        links: the part of the path that is a chain, of which only some links are looked at.
    """
    names: list[tuple[str, int]] = []  # each with the number of links that it stands for
    index = 1
    while index < len(path):
        if links is not None and index >= links.begin:
            # The last link is described by itself: it may be the dict of the object that holds the chain.
            count = (links.end - index) // links.period - 1
            if count >= _FOLDED_FROM:
                names += _describe_links(path, LinksOfPath(index, links.end, links.period), count, show_values)
                index += count * links.period
            links = None
            continue
        text, described = _describe_holder(path, index, module if index == len(path) - 1 else None, show_values)
        names += [(text, 1)] if text else []
        index += described
    return _fold(names)


def _describe_links(path: Sequence[object], links: LinksOfPath, count: int, show_values: bool) -> list[tuple[str, int]]:
    begins = range(links.begin, links.begin + count * links.period, max(count // _LINKS_LOOKED_AT, 1) * links.period)
    texts = [_describe_link(path, begin, links.period, show_values) for begin in begins]
    if len(set(texts)) > 1:
        texts = [tuple(_BRACKETS.sub("[…]", name) for name in text) for text in texts]
    # As three links, so that they are folded, also with equal ones before and behind.
    return [(name, share) for share in (1, 1, count - 2) for name in texts[0]]


def _describe_link(path: Sequence[object], begin: int, period: int, show_values: bool) -> tuple[str, ...]:
    names: list[str] = []
    index = begin
    while index < begin + period:
        text, described = _describe_holder(path, index, None, show_values)
        names += [text] if text else []
        index += described
    return tuple(names)


def _fold(names: list[tuple[str, int]]) -> tuple[str, ...]:
    folded: list[str] = []
    place = 0
    while place < len(names):
        group, repeats = _repeated_at(names, place)
        text = " <- ".join(name for name, _ in names[place : place + group])
        if repeats < _FOLDED_FROM:
            folded.append(names[place][0])
            place += 1
            continue
        times = sum(share for _, share in names[place : place + group * repeats : group])
        folded.append(f"{text if group == 1 else f'({text})'}, {times:,} times")
        place += group * repeats
    return tuple(folded)


def _repeated_at(names: list[tuple[str, int]], place: int) -> tuple[int, int]:
    # The shortest group of names that is repeated often enough to be folded, and how often it is.
    for group in range(1, _LONGEST_GROUP + 1):
        first = [name for name, _ in names[place : place + group]]
        repeats = 1
        while [name for name, _ in names[place + repeats * group : place + (repeats + 1) * group]] == first:
            repeats += 1
        if repeats >= _FOLDED_FROM:
            return group, repeats
    return 1, 1


def _describe_holder(path: Sequence[object], index: int, module: str | None, show_values: bool) -> tuple[str, int]:
    # Returns the text, and how many objects of the path it describes: an instance and its dict are one holder, and so
    # are a function, its closure and the cell in it.
    child, holder = path[index - 1], path[index]
    # Any: read by its exact type only
    above: Any = path[index + 1] if index + 1 < len(path) else None
    cls = real_type(holder)
    if module is not None:
        return f"{module}.{_attribute_of_dict(child, holder)}", 1
    if issubclass(cls, dict) and above is not None:
        text = _describe_owner_of_dict(child, holder, above)
        if text:
            return text, 2
    if cls is types.CellType or _is_part_of_context(holder):
        return "", 1
    if cls is contextvars.Context:
        return _variable_of_context(path, index), 1
    if cls is tuple and above is not None and real_type(above) is types.FunctionType and above.__closure__ is holder:
        return f"closure of {describe_object(above)}, {_variable_in(child, above)}", 2
    return _describe_single(child, holder, show_values), 1


def _is_part_of_context(found: object) -> bool:
    # A node of the tree in which a context keeps its values: its class has no public name, and no program made it.
    cls = real_type(found)
    return type_name(cls).startswith("hamt") and is_static(cls)


def _variable_of_context(path: Sequence[object], index: int) -> str:
    held = next((found for found in path[index - 1 :: -1] if not _is_part_of_context(found)), None)
    context: Any = path[index]
    name = next((variable.name for variable, value in context.items() if value is held), None)
    return f"ContextVar {printable_name(name)!r}" if name is not None else "a context"


def _describe_owner_of_dict(child: object, found: Any, owner: object) -> str:
    key = _attribute_of_dict(child, found)
    if issubclass(real_type(owner), type):
        return f"class {type_name(owner)}.{key}"  # type: ignore[arg-type]  # it is a class
    if instance_dict(owner) is not found:
        return ""
    return f"{describe_object(owner)}.{key}"


def _describe_single(child: object, holder: Any, show_values: bool) -> str:
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
        return f"{type_name(real_type(holder))}[{_key_of(child, holder, show_values)}]"
    if issubclass(cls, (list, tuple, deque)):
        return f"{type_name(real_type(holder))}[{_index_of(child, holder)}]"
    if issubclass(cls, (set, frozenset)) or is_any_of(cls, _NAMED):
        return name
    if issubclass(real_type(holder), type):
        return f"class {type_name(holder)}{_member(child, class_items(holder).items())}"
    if cls is types.FunctionType:
        return f"{name}{_part_of_function(child, holder)}"
    if issubclass(cls, BaseException) or cls is types.TracebackType:
        return f"{name}{_link_of_exception(child, holder) or _member(child, attributes_of(holder))}"
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
    if cls is contextvars.ContextVar:
        return f"ContextVar {printable_name(found.name)!r}"
    if is_kind(cls, "_asyncio", "Task"):
        return f"task {printable_name(sys.modules['_asyncio'].Task.get_name(found))!r}"
    if is_kind(cls, "threading", "Thread"):
        return f"thread {printable_name(attribute_of(found, '_name'))!r}"
    return type_name(cls)


def _function_name(function: Any) -> str:
    if real_type(function) is types.FunctionType:
        return printable_name(function.__qualname__)
    return type_name(real_type(function))


def _key_of(child: object, found: Any, show_values: bool) -> str:
    # The keys of what `exec` runs in are names of variables.
    show_values = show_values or _is_namespace(found)
    for number, (key, value) in enumerate(newest_items(found)):
        if value is child:
            return key_text(key, show_values=show_values)
        if key is child:
            return f"as the key {key_text(key, show_values=show_values)}"
        if number > _MAX_ITEMS:
            break
    return "…"


def _is_namespace(found: Any) -> bool:
    if real_type(found) is not dict:
        return False
    keys = (key for key, _ in islice(newest_items(found), _MAX_ITEMS))
    return any(real_type(key) is str and key == "__builtins__" for key in keys)


def _attribute_of_dict(child: object, found: Any) -> str:
    items = islice(newest_items(found), _MAX_ITEMS)
    return next((attribute_text(key) for key, value in items if value is child), "…")


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
    return next((f".{attribute_text(name)}" for name, value in members if value is child), "")


def _link_of_exception(child: object, found: Any) -> str:
    kind = BaseException if issubclass(real_type(found), BaseException) else types.TracebackType
    links = (link for link in ("__cause__", "__context__", "__traceback__", "tb_next") if link in vars(kind))
    return next((f".{link}" for link in links if vars(kind)[link].__get__(found) is child), "")


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
