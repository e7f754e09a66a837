"""Tell, at the price of one index, whether this process made an object or inherited it by a fork.

`os.register_at_fork` hears only of forks by Python. A server written in C (uWSGI, mod_wsgi, a ctypes call) forks
without it, and a system call to ask for the pid costs a tenth of a whole reading.
"""

import mmap
import os
import sys
from typing import Protocol

_MADV_WIPEONFORK = 18  # Linux 4.14; the mmap module of Python 3.11 does not name it


class Birthmark(Protocol):
    """`mark[0]` is true in the process that made the mark, and false in a child that it forked."""

    def __getitem__(self, index: int, /) -> object:
        """Return whether the mark was made in this process; `index` is always 0."""
        ...


class _PidMark:
    """Asks for the pid, where the kernel has no page that it wipes at a fork."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int, /) -> bool:
        return os.getpid() == self._pid


def birthmark() -> Birthmark:
    """Return a mark of this process: a page that the kernel empties in a forked child, else a pid."""
    if sys.platform != "linux":
        return _PidMark()
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):  # an older kernel, a sandbox without it, or no memory for a page
        return _PidMark()
    page[0] = 1
    return page
