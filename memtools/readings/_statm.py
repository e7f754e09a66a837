"""Memory of this process from a kept descriptor of /proc/self/statm.

A file of its own because Windows has no `os.pread`: it is imported on Linux only.
"""

import contextlib
import mmap
import os
import sys
import threading
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from memtools.readings._types import MemoryFields

_MADV_WIPEONFORK: Final = 18  # Linux 4.14; not among the constants of the mmap module
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_MAX_LENGTH: Final = 160  # seven numbers of at most 20 digits, and their separators

_pread = os.pread  # looking up the attribute of a module costs time on every reading


class _System:
    """The functions of `os` as they were when this module was loaded.

    Test tools that put up a fake file system replace `os` in modules that are loaded already; the memory of the process
    is in the real one.
    """

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    fstat = staticmethod(os.fstat)
    pread = staticmethod(os.pread)


class ProcessToken(Protocol):
    """`token[0]` is true in the process that made the token, and false in a child that it forked."""

    def __getitem__(self, index: int, /) -> object:
        """Return whether the token was made in this process; `index` is always 0."""
        ...


class _PidToken:
    """Token for systems without MADV_WIPEONFORK: asks for the pid on each use."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int, /) -> bool:
        return os.getpid() == self._pid


def process_token() -> ProcessToken:
    """Return a token that detects every fork: a page that the kernel empties in a forked child, else a pid.

    `os.register_at_fork` misses forks by C code (uWSGI, mod_wsgi, a ctypes call), and a system call for the pid takes a
    tenth of the time of a reading. Reading a byte of the page takes the time of one index.
    """
    if sys.platform != "linux":
        return _PidToken()
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):  # an older kernel, a sandbox that refuses it, or no memory for a page
        return _PidToken()
    page[0] = 1
    return page


# Descriptor, its code size, its process token, and (device, inode). One tuple, replaced as a whole: a thread never sees
# the descriptor of one opening with the code size of another.
_Opened: TypeAlias = tuple[int, bytes, ProcessToken, tuple[int, int]]
_CLOSED: Final[_Opened] = (-1, b"", (False,), (-1, -1))


class Statm:
    """Memory of this process from /proc/self/statm, whose descriptor stays open: one system call, 1.6 us.

    A kept descriptor has three traps. After a fork it still reports the parent. A daemon that calls `os.closerange`
    closes it. Its number is then given to the next file that is opened. So each answer is checked: it must have seven
    fields, the fourth (the size of the program's code, constant while it runs) must be the known one, and the process
    token must hold. The old number is closed only if it still refers to the file that was opened.

    Args:
        path: the file.
        fallback: called with the error when the file cannot be opened or read.
        open_file: `os.open`, or a replacement.

    Threads: safe. Fork: safe; `reset` in the child closes the inherited descriptor before the first reading does.
    """

    __slots__ = ("_fallback", "_lock", "_open_file", "_opened", "_path")

    def __init__(
        self,
        path: str = "/proc/self/statm",
        *,
        fallback: Callable[[Exception], MemoryFields],
        open_file: Callable[[str, int], int] = _System.open,
    ) -> None:
        self._path = path
        self._fallback = fallback
        self._open_file = open_file
        self._opened = _CLOSED
        self._lock = threading.RLock()  # a signal handler may read while the file is being opened

    def resident_bytes(self) -> int:
        """Return the resident memory of this process, in bytes.

        On Linux one system call on a descriptor that is opened on first use and stays open (1.6 us); elsewhere psutil
        (about 10 us). Correct in forked children, in threads, and after other code has closed the descriptor.

        Raises:
            ReadingError: when no source can be read, for instance when no descriptor is left for the first reading.
        """
        opened = self._opened
        try:
            fd, code, token, _ = opened
            _, resident, _, code_now, _, _, _ = _pread(fd, _MAX_LENGTH, 0).split()
            if code_now == code and token[0]:
                return int(resident) * _PAGE_BYTES
        except (OSError, ValueError):
            pass  # not opened yet, closed by other code, or another file: open it again
        return self._reopen_or_fall_back(opened)[1]

    def fields(self) -> MemoryFields:
        """Return virtual, resident and shared memory of one moment, in bytes; the peak is not in this file.

        Raises:
            ReadingError: when no source can be read.
        """
        opened = self._opened
        try:
            return _read(opened)
        except (OSError, ValueError):
            return self._reopen_or_fall_back(opened)

    def reset(self) -> None:
        """Close the descriptor, unless its number means another file now; the next reading opens the file again.

        Called in every forked child.
        """
        self._lock = threading.RLock()  # another thread of the parent may have held it
        opened, self._opened = self._opened, _CLOSED
        _close(opened)

    def _reopen_or_fall_back(self, failed: _Opened) -> MemoryFields:
        try:
            return self._reopen(failed)
        except (OSError, ValueError) as error:
            return self._fallback(error)

    def _reopen(self, failed: _Opened) -> MemoryFields:
        with self._lock:
            if self._opened is failed:  # otherwise another thread has reopened it already
                self._opened = _CLOSED
                _close(failed)
                self._opened = _checked(self._open_file(self._path, os.O_RDONLY | os.O_CLOEXEC))
            return _read(self._opened)


def _checked(fd: int) -> _Opened:
    try:
        code = _split(_System.pread(fd, _MAX_LENGTH, 0))[3]
        status = _System.fstat(fd)
        return fd, code, process_token(), (status.st_dev, status.st_ino)
    except BaseException:
        _System.close(fd)
        raise


def _read(opened: _Opened) -> MemoryFields:
    fd, code, token, _ = opened
    fields = _split(_System.pread(fd, _MAX_LENGTH, 0))
    if fields[3] != code or not token[0]:
        raise ValueError("the descriptor of /proc/self/statm refers to another file")
    virtual, resident, shared = (int(field) * _PAGE_BYTES for field in fields[:3])
    return virtual, resident, shared, None


def _split(line: bytes) -> list[bytes]:
    fields = line.split()
    if len(fields) != 7 or not all(field.isdigit() for field in fields):
        raise ValueError(f"not the content of a statm file: {line!r}")
    return fields


def _close(opened: _Opened) -> None:
    with contextlib.suppress(OSError):  # other code has closed it
        status = _System.fstat(opened[0])
        if (status.st_dev, status.st_ino) == opened[3]:
            _System.close(opened[0])
