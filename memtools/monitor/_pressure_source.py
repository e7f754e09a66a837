"""Where the kernel, or the service manager, says that memory is short.

Covers: which file to watch, opening it the way its kind wants, what is written into it first.
Leaves to others: waiting for it (`_pressure`).

In this order: `$MEMORY_PRESSURE_WATCH` (the protocol of systemd, https://systemd.io/MEMORY_PRESSURE), the pressure file
of the nearest cgroup above us that has a limit, /proc/pressure/memory. Linux only.
"""

import base64
import binascii
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from memtools.readings import Headroom, LimitSource
from memtools.records import record

WATCH: Final = "MEMORY_PRESSURE_WATCH"
WRITE: Final = "MEMORY_PRESSURE_WRITE"
SYSTEM: Final = "/proc/pressure/memory"
# 200 ms of 2 s in which somebody waited for memory. Windows in multiples of 2 s need no privilege (Linux 6.5).
TRIGGER: Final = b"some 200000 2000000\0"
_CGROUPS2: Final = (LimitSource.CGROUP2_MAX, LimitSource.CGROUP2_HIGH)


@record
class PressureSource:
    """An open file that wakes whoever polls it when memory is short.

    Attributes:
        path: what was opened.
        fd: its descriptor; whoever opened it closes it.
        has_content: whether what arrives has to be read away (a FIFO), or the wake-up is all (the kernel's files).
    """

    path: str
    fd: int
    has_content: bool


def open_source(
    room: Headroom | None, *, environ: Mapping[str, str] = os.environ, system: str = SYSTEM
) -> PressureSource | None:
    """Return the first source that can be opened; None where there is none, or where the manager wants none."""
    for path, trigger in _candidates(room, environ, system):
        with suppress(OSError, ValueError):  # not there, not allowed, no descriptor left, a NUL in the path
            return _opened(path, trigger)
    return None


def _candidates(room: Headroom | None, environ: Mapping[str, str], system: str) -> Iterator[tuple[str, bytes]]:
    told = environ.get(WATCH, "")
    if told == "/dev/null":  # "do not watch", by the protocol
        return
    if told:
        yield told, _asked_to_write(environ)
    walls = room.levels if room is not None else ()
    ours = [wall.path for wall in walls if wall.source in _CGROUPS2 and wall.path is not None]
    yield from ((f"{os.path.dirname(path)}/memory.pressure", TRIGGER) for path in ours[:1])
    yield system, TRIGGER


def _asked_to_write(environ: Mapping[str, str]) -> bytes:
    try:
        return base64.b64decode(environ.get(WRITE, ""), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _opened(path: str, trigger: bytes) -> PressureSource:
    # Read and write: a FIFO that was opened for reading alone ends with its first writer.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        has_content = stat.S_ISFIFO(os.fstat(fd).st_mode)
        if trigger:
            os.write(fd, trigger)
    except BaseException:
        os.close(fd)
        raise
    return PressureSource(path, fd, has_content)
