"""The search path and the modules that a program meets.

memtools has imported a part of the standard library, psutil and typing-extensions before the program begins. Where the
program alone would find a module of its own by one of these names, `sys.modules` must not answer in its place: the
module is hidden, and the modules that have imported it keep it.
"""

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Collection, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

from memtools import _search_path

_PACKAGE: Final = "memtools"
# Looked at now, while `__main__` is that of memtools.
_HAS_FIRST_FOLDER: Final = _search_path.has_first_folder()

# The modules of memtools that the program does not meet, by name.
_hidden: dict[str, ModuleType] = {}


def set_first_folder(folder: str, *, always: bool = False) -> None:
    """Make `folder` the first one of the search path, as the interpreter does for a script.

    Args:
        folder: the folder of a script, a folder or zip file that is run, the current folder, or an empty text.
        always: also where the interpreter puts no script's folder in front (`-P`, `-I`, `PYTHONSAFEPATH`).
    """
    _search_path.restore()
    if _HAS_FIRST_FOLDER:
        sys.path[:1] = [folder]
    elif always or not sys.flags.safe_path:
        sys.path.insert(0, folder)


def leave_out_first_folder() -> None:
    """Put no folder in front of the search path."""
    _search_path.restore()
    if _HAS_FIRST_FOLDER:
        del sys.path[0]


def hide_shadowed_modules(
    *, at_start: Collection[str] | None = None, first: str | None = None, also: Collection[str] = ()
) -> None:
    """Hide each module that memtools has imported and that the program's search path has another one for.

    A module that the interpreter had loaded at its start stays, since the program alone would meet it, too. So does
    memtools, which must not exist twice.

    Args:
        at_start: the modules that the interpreter had loaded at its start; by default those before `memtools`.
        first: a folder that is going to be in front of the search path.
        also: further modules to hide.
    """
    known_folders = set(sys.path_importer_cache)
    kept = {*(_names_at_start() if at_start is None else at_start), _PACKAGE, "__main__"}
    names = {name.partition(".")[0] for name in sys.modules} - kept
    path = sys.path if first is None else [first, *sys.path]
    shadowed = {name for name in names if name in also or _is_shadowed(name, path)}
    for name in list(sys.modules):
        if name.partition(".")[0] in shadowed:
            _hidden[name] = sys.modules.pop(name)
    # The finders remember the files of the folders: a file that the program writes at once would not be found.
    for folder in set(sys.path_importer_cache) - known_folders:
        sys.path_importer_cache.pop(folder, None)


def hidden_modules() -> tuple[str, ...]:
    """Return the names of the top-level modules that are hidden."""
    return tuple(sorted({name.partition(".")[0] for name in _hidden}))


@contextmanager
def own_modules() -> Generator[None, None, None]:
    """Let imports find the hidden modules in the block, and the program's modules of these names after it."""
    others = {name: sys.modules[name] for name in _hidden if name in sys.modules}
    sys.modules.update(_hidden)
    try:
        yield
    finally:
        for name in _hidden:
            sys.modules.pop(name, None)
        sys.modules.update(others)


def is_module(name: str) -> bool:
    """Return whether `python -m NAME` would find a module; nothing is imported."""
    if not name.isidentifier():
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _names_at_start() -> set[str]:
    """Return the names of the modules that the interpreter had loaded before it began with `memtools`."""
    # `sys.modules` is in the order in which loading ended, and `site` ends when all `.pth` files have been executed.
    names = list(sys.modules)
    return set(names[: names.index("site") + 1]) if "site" in names else {"encodings"}


def _is_shadowed(name: str, path: list[str]) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None or spec.origin is None or not spec.has_location:
        return False  # built in or frozen: found before any folder is looked at
    found = importlib.machinery.PathFinder.find_spec(name, path)
    if found is None or found.loader is None or found.origin is None:
        return False  # nothing, or a folder without code, which hides no module
    return found.origin != spec.origin and not _is_same(found.origin, spec.origin)


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
