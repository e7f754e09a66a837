"""What a way to a root usually means, and the line to change.

Covers: the patterns that leak again and again, known by the holders on the way.
Leaves to others: finding and naming the way (`_climbing`, `_naming`).
"""

import types
from collections.abc import Callable, Sequence
from typing import Final

from memtools.heap._kinds import LRU, is_kind
from memtools.heap._looking import class_of


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
