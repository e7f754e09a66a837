"""How much memory the machine has, and how much of it can still be given out.

Linux tells it in /proc/meminfo; psutil is asked where that file is missing, and by kernels that say less in it.
"""

from collections.abc import Callable

from memtools.readings._tree import Tree, rooted

_MEMINFO = "/proc/meminfo"


def told_bytes(tree: Tree, label: bytes) -> int | None:
    """Return what /proc/meminfo says on the line `label`, in bytes; None where it does not."""
    kib = tree.labelled(_MEMINFO, label)
    return None if kib is None else kib * 1024


def physical_bytes() -> int | None:
    """Return how much memory the machine has, in bytes; None when nothing here can tell."""
    told = told_bytes(Tree(rooted("/")), b"MemTotal")
    return told if told is not None else _by_psutil("physical_bytes")


def available_bytes() -> int | None:
    """Return how much memory the machine can give without swapping, in bytes; None when nothing here can tell.

    Of the whole machine: a container may be allowed less (see `headroom`).
    """
    told = told_bytes(Tree(rooted("/")), b"MemAvailable")
    return told if told is not None else _by_psutil("available_bytes")


def _by_psutil(question: str) -> int | None:
    try:
        from memtools.readings import _psutil

        ask: Callable[[], int] = getattr(_psutil, question)
        return ask()
    except (OSError, ImportError, RuntimeError):  # no /proc at all, no descriptor left, a platform that it cannot read
        return None
