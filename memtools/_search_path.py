"""The module search path while `python -m memtools` imports memtools.

`python -m` puts the current folder first, so that a `queue.py` of the program that is to be run would be taken for the
standard library's. The order here is: standard library, `PYTHONPATH` and site-packages, current folder.

A file of its own because it has to be imported before everything else, and imports nothing but `sys` and `os`.
"""

import os
import sys

_saved: list[str] = []


def _prefer_library() -> None:
    """Put the standard library first, and the current folder last, where this process is `python -m memtools`."""
    if not _is_command():
        return
    folders = sys.path[1:] if has_first_folder() else sys.path[:]
    _saved[:] = sys.path
    library = [folder for folder in folders if _is_library(folder)]
    rest = [folder for folder in folders if not _is_library(folder)]
    sys.path[:] = [*library, *rest, *sys.path[: len(sys.path) - len(folders)]]


def restore() -> None:
    """Make the search path what it was when the interpreter started; nothing where it was not changed."""
    if _saved:
        sys.path[:] = _saved


def has_first_folder() -> bool:
    """Return whether `sys.path[0]` is the folder that the interpreter puts in front for `python -m` or a script.

    It does not with `-P`, `-I` and `PYTHONSAFEPATH`, nor for `python -m` in a folder that has been removed.
    """
    path = _saved or sys.path
    if sys.flags.safe_path or not path:
        return False
    if sys.argv[:1] != ["-m"] and getattr(sys.modules["__main__"], "__spec__", None) is None:
        return True  # a script: the console command
    try:
        return path[0] in ("", os.getcwd())
    except OSError:
        return False


def _is_command() -> bool:
    # The interpreter sets `-m` while it looks for the module; the word after it is only in the original arguments.
    if sys.argv[:1] != ["-m"]:
        return False
    words = iter(sys.orig_argv[1:])
    for word in words:
        if not word.startswith("-"):
            return False
        if word.startswith("--"):
            if word == "--check-hash-based-pycs":
                next(words, None)
            continue
        for place, letter in enumerate(word[1:], start=2):
            if letter in "cmWX":  # an option whose value is the rest of the word, or the next one
                value = word[place:] or next(words, "")
                if letter in "cm":
                    return letter == "m" and value.partition(".")[0] == "memtools"
                break
    return False


def _is_library(folder: str) -> bool:
    library = os.path.dirname(os.__file__)
    inside = folder == library or folder.startswith(library + os.sep)
    return inside and not folder.endswith(("site-packages", "dist-packages"))


_prefer_library()
