"""Begin to measure a child process of `memtools run`, before its program begins.

`memtools run` puts the folder of this file first on the `PYTHONPATH` of each Python that the program starts, and of no
other program. Python imports a module of this name at its start. This one takes its folder out of the search path and
of the environment, so that the child meets both as it would alone, and then lets Python find the `sitecustomize` that
it would have found. A Python of another version or environment does only that.

A file of its own because Python looks for this name.
"""

import os
import sys


def _leave_no_trace(was_set: bool) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder != here]
    sys.path_importer_cache.pop(here, None)
    rest = os.environ.get("PYTHONPATH", "").split(os.pathsep)[1:]
    if was_set:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)


def _follow(folder: str) -> None:
    with open(os.path.join(folder, "python")) as file:
        version, prefix, home = file.read().split("\n")
    if [version, prefix] != [sys.version.replace("\n", " "), sys.prefix]:
        return
    names = set(sys.modules)
    is_new = home not in sys.path
    if is_new:
        sys.path.append(home)
    try:
        from memtools.commands._children import join

        join(folder, names)
    finally:
        if is_new:
            sys.path.remove(home)


def _begin() -> None:
    was_set, _, folder = os.environ.pop("MEMTOOLS_RUN_CHILD", "").partition(":")
    if folder:
        _leave_no_trace(was_set == "1")
        try:
            _follow(folder)
        except Exception:  # the child must run as it would alone; its parent says that it was not looked at
            return


_begin()
del sys.modules[__name__]
# That of the user, if there is one; `site` expects an ImportError if not.
import sitecustomize  # type: ignore[import-not-found]  # noqa: E402, F401
