"""Memory of this process from a /proc/self/statm that stays open: one system call, 1.6 us.

Covers: opening on first use, forks, threads, a descriptor that somebody closed or that now means another file.
Leaves to others: where there is no such file (`_second_way`), peaks (`_peak`).

Kept descriptors have three traps. One that was made before a fork reports the parent. `os.closerange` in a daemon
closes it. Its number is then given to the next file that is opened. So each answer is checked: it has seven fields, the
fourth (the size of the program's code, which no running process changes) is the one we know, and the birthmark holds.
The old number is closed only if it still means the file that we opened.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TypeAlias

from memtools.readings._process import MemoryFields, ProcessToken, read_with_psutil, process_token

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_pread = os.pread  # a module's attribute costs a look-up more on every reading
_LONGEST = 160  # seven numbers of at most 20 digits, and what separates them

# Descriptor, its code size, its birthmark, and (device, inode). One tuple, replaced as a whole: a thread never sees
# the descriptor of one opening with the code size of another.
_Opened: TypeAlias = tuple[int, bytes, ProcessToken, tuple[int, int]]
_CLOSED: _Opened = (-1, b"", (False,), (-1, -1))


class Statm:
    """Memory of this process as /proc/self/statm tells it.

    Threads: safe. Fork: safe; `forget` in the child saves the inherited descriptor from staying open until first use.
    """

    __slots__ = ("_lock", "_open_file", "_opened", "_fallback", "_path")

    def __init__(
        self,
        path: str = "/proc/self/statm",
        *,
        open_file: Callable[[str, int], int] = os.open,
        fallback: Callable[[Exception], MemoryFields] = read_with_psutil,
    ) -> None:
        self._path = path
        self._open_file = open_file
        self._fallback = fallback
        self._opened = _CLOSED
        self._lock = threading.RLock()  # a signal handler may read in the middle of an opening

    def resident_bytes(self) -> int:
        """Return the resident memory of this process, in bytes.

        On Linux one system call on a descriptor that is opened on first use and stays open (1.6 us); elsewhere psutil
        (about 10 us). Right in forked children, in threads, and after somebody has closed our descriptor.

        Raises:
            ReadingError: when no way works, for instance when no descriptor is left for the first reading.
        """
        opened = self._opened
        try:
            fd, code, born_here, _ = opened
            _, resident, _, same_code, _, _, _ = _pread(fd, _LONGEST, 0).split()
            if same_code == code and born_here[0]:
                return int(resident) * _PAGE_BYTES
        except (OSError, ValueError):
            pass  # not opened yet, closed by somebody, or another file: all the same to what follows
        return self._reopen_or_fall_back(opened)[1]

    def fields(self) -> MemoryFields:
        """Return virtual, resident and shared memory of one moment, in bytes; the peak is not in this file.

        Raises:
            ReadingError: when no way works.
        """
        opened = self._opened
        try:
            return _read(opened)
        except (OSError, ValueError):
            return self._reopen_or_fall_back(opened)

    def reset(self) -> None:
        """Close the descriptor, if it is still ours; the next reading opens anew. Called in every forked child."""
        self._lock = threading.RLock()  # another thread may have held it when this process was forked
        opened, self._opened = self._opened, _CLOSED
        _close(opened)

    def _reopen_or_fall_back(self, failed: _Opened) -> MemoryFields:
        try:
            return self._reopen(failed)
        except (OSError, ValueError) as error:
            return self._fallback(error)

    def _reopen(self, failed: _Opened) -> MemoryFields:
        with self._lock:
            if self._opened is failed:  # else another thread was quicker
                self._opened = _CLOSED
                _close(failed)
                self._opened = _checked(self._open_file(self._path, os.O_RDONLY | os.O_CLOEXEC))
            return _read(self._opened)


def _checked(fd: int) -> _Opened:
    try:
        code = _split(os.pread(fd, _LONGEST, 0))[3]
        status = os.fstat(fd)
        return fd, code, process_token(), (status.st_dev, status.st_ino)
    except BaseException:
        os.close(fd)
        raise


def _read(opened: _Opened) -> MemoryFields:
    fd, code, born_here, _ = opened
    fields = _split(os.pread(fd, _LONGEST, 0))
    if fields[3] != code or not born_here[0]:
        raise ValueError("the descriptor of /proc/self/statm means another file")
    virtual, resident, shared = (int(field) * _PAGE_BYTES for field in fields[:3])
    return virtual, resident, shared, None


def _split(line: bytes) -> list[bytes]:
    fields = line.split()
    if len(fields) != 7 or not all(field.isdigit() for field in fields):
        raise ValueError(f"not a statm: {line!r}")
    return fields


def _close(opened: _Opened) -> None:
    with contextlib.suppress(OSError):  # closed by somebody else
        status = os.fstat(opened[0])
        if (status.st_dev, status.st_ino) == opened[3]:
            os.close(opened[0])
