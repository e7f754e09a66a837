"""The kinds of holders that are known by their class, some of them of modules that may not be loaded.

Leaves to others: what they are called (`_naming`), where a climb stops (`_climbing`), what they mean (`_hints`).
"""

import functools
import sys
import types
from typing import Any, Final

from memtools.heap._looking import attribute_of, class_of

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
