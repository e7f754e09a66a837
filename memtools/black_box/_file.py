"""The file of a black box as its writer has it: made whole, then written in place.

Everything is written by `pwrite`, which fails where a store into a mapped file would send a signal.
"""

import os
import struct
import sys
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Self

from memtools.black_box._layout import (
    HEADER,
    KILLS_AT,
    LAST_WORDS,
    LAST_WORDS_BYTES,
    MAILBOX_AT,
    QUESTION,
    READING,
    REPORTED,
    SECTIONS,
    SIZE,
    STANDING,
    STANDING_AT,
    STATE_AT,
    pack_header,
    with_checksum,
)
from memtools.readings._shares import process_start
from memtools.readings._traces import boot_id

if sys.platform != "win32":
    import fcntl

# A program that makes a daemon of itself closes the descriptors that it does not know, and opens files of its own,
# which get low numbers, and so not this one's.
_LOWEST_DESCRIPTOR: Final = 200
_UNKNOWN: Final = -1


class BoxFile:
    """An open file of a black box; `create` makes one.

    Threads: one call at a time.

    Attributes:
        path: where it is.
        fd: its descriptor.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        self.fd = fd
        status = os.fstat(fd)
        self._identity = status.st_dev, status.st_ino
        self._readings = 0
        self._last_words = 0
        self._buffer = bytearray(LAST_WORDS_BYTES)  # made now: at the end there may be no memory for it

    @classmethod
    def create(cls, path: str, description: Mapping[str, object]) -> Self:
        """Make a file under a hidden name; `publish` gives it its own, so that no reader meets half a file.

        Args:
            path: its path in the end.
            description: what its header tells of the process.

        Raises:
            OSError: where the file cannot be made, or has no room (ENOSPC); nothing is left behind then.
        """
        folder, name = os.path.split(path)
        hidden = os.path.join(folder, f".{name}.part")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(hidden, flags, 0o600)
        try:
            fd = _moved_up(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system drops it with the process
            _reserve(fd)
            ticks = process_start(os.getpid())
            header = pack_header(os.getpid(), int(ticks or 0), time.time(), boot_id(), description)
            os.pwrite(fd, header, 0)
            return cls(fd, hidden)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                os.unlink(hidden)
            raise

    def publish(self, path: str) -> None:
        """Give the file its own name.

        Raises:
            OSError: where that is not possible.
        """
        os.rename(self.path, path)
        self.path = path

    def write_reading(
        self,
        resident: int,
        limit: int | None,
        usage: int | None,
        counted: int | None,
        kills: int | None,
        level: int,
    ) -> None:
        """Write a reading into the ring; the oldest one makes room.

        Args:
            resident: resident bytes of the process.
            limit: its limit in bytes.
            usage: bytes that its cgroup uses, without caches.
            counted: bytes that the ledger has counted.
            kills: how many processes of the cgroup were killed for want of memory.
            level: how short memory is.

        Raises:
            OSError: when the file cannot be written.
        """
        packed = READING.pack(
            0, self._readings & 0xFFFFFFFF, time.time(), time.monotonic(), resident,
            *(_UNKNOWN if figure is None else min(figure, 2**63 - 1) for figure in (limit, usage, counted)),
            0 if kills is None else min(kills + 1, 0xFFFFFFFF), level,
        )  # fmt: skip
        section = SECTIONS["readings"]
        self._write(with_checksum(packed), section.place(self._readings % section.count))
        self._readings += 1

    def write_last_words(self, text: str) -> None:
        """Write a text into one of two slots in turn: death in the middle leaves the other one whole.

        Raises:
            OSError: when the file cannot be written.
        """
        body = text.encode("utf-8", "replace")[: LAST_WORDS_BYTES - LAST_WORDS.size]
        self._last_words += 1
        LAST_WORDS.pack_into(self._buffer, 0, zlib.crc32(body), self._last_words, len(body), 0)
        end = LAST_WORDS.size + len(body)
        self._buffer[LAST_WORDS.size : end] = body
        with memoryview(self._buffer)[:end] as whole:
            self._write(whole, SECTIONS["last_words"].place(self._last_words % 2))

    def read_question(self) -> bytes:
        """Return the question in the mailbox as it stands there; empty where the program has closed the descriptor.

        Raises:
            OSError: when the file cannot be read.
        """
        return os.pread(self.fd, QUESTION.size, MAILBOX_AT) if self.is_own else b""

    def write_standing(self, interval_s: float, number: int, standing: int) -> None:
        """Write what has become of a question.

        Args:
            interval_s: seconds between two looks at the mailbox.
            number: the question; 0 for none so far.
            standing: one of the four standings.

        Raises:
            OSError: when the file cannot be written.
        """
        self._write(with_checksum(STANDING.pack(0, interval_s, number, standing)), STANDING_AT)

    def write_state(self, state: int) -> None:
        """Write the state of the file.

        Raises:
            OSError: when the file cannot be written.
        """
        self._write(struct.pack("<I", state), STATE_AT)

    def close(self) -> None:
        """Close the descriptor, unless the program has closed it and opened another file in its place."""
        if self.is_own:
            os.close(self.fd)
        self.fd = -1

    @property
    def is_own(self) -> bool:
        """Whether the descriptor is still that of this file."""
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _write(self, packed: bytes | memoryview, at: int) -> None:
        if not self.is_own:
            raise OSError(f"the program has closed the descriptor of {self.path}")
        if os.fstat(self.fd).st_size < SIZE:
            raise OSError(f"{self.path} was cut")  # a write would make it longer again, with holes
        os.pwrite(self.fd, packed, at)


def set_reported(fd: int, oom_kills: int | None) -> None:
    """Write into a file that another process has left that its death is told now.

    Args:
        fd: the file.
        oom_kills: how many processes of its cgroup the kernel has killed up to now: later ones say nothing of it.

    Raises:
        OSError: when the file cannot be written.
    """
    os.pwrite(fd, struct.pack("<I", 0 if oom_kills is None else min(oom_kills + 1, 0xFFFFFFFF)), KILLS_AT)
    os.pwrite(fd, struct.pack("<I", REPORTED), STATE_AT)


def read_state(fd: int) -> int:
    """Return the state of a file; 0 where it is too short to have one.

    Raises:
        OSError: when the file cannot be read.
    """
    found = os.pread(fd, 4, STATE_AT)
    return int.from_bytes(found, "little") if len(found) == 4 else 0  # bytes


def is_running(fd: int) -> bool:
    """Return whether there is a process of the id and the start that a file has.

    Raises:
        OSError: when the file cannot be read.
    """
    head = os.pread(fd, HEADER.size, 0)
    if len(head) < HEADER.size:
        return False
    fields = HEADER.unpack(head)
    pid, ticks, boot = fields[4], fields[6], fields[8]
    return boot == boot_id() and ticks != 0 and process_start(pid) == str(ticks)


def _moved_up(fd: int) -> int:
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_DESCRIPTOR)
    except OSError:  # beyond the limit of the process
        return fd
    os.close(fd)
    return int(moved)


def _reserve(fd: int) -> None:
    # Or the first store into a page on a full disk would be a SIGBUS in the allocator.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, SIZE)
        return
    written = 0
    while written < SIZE:  # pragma: no cover  # macOS
        written += os.pwrite(fd, bytes(SIZE - written), written)
