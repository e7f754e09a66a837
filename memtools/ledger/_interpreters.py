"""Notice that a program is about to make sub-interpreters, which the native ledger has to know before it does.

Covers: the modules by which Python code makes them, loaded already or later. Leaves to others: being told of each one,
those that C code makes, and what follows (`native/interpreters.c`).
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Final

# Up to 3.12, and since; everything else that makes them in Python goes through these.
_MAKERS: Final = frozenset({"_xxsubinterpreters", "_interpreters"})


def before_they_are_made(prepare: Callable[[], object]) -> None:
    """Call `prepare` before Python code can make its first sub-interpreter; at once, where it could have."""
    if _MAKERS & sys.modules.keys():
        prepare()
    else:
        sys.meta_path.insert(0, _Finder(prepare))


class _Finder(MetaPathFinder):
    """Finds nothing; tells when one of the modules is looked for."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /) -> None:
        """Leave it to the others."""
        if fullname in _MAKERS:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self._prepare()
