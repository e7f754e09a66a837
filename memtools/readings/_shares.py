"""The share of the machine's memory that another process has, without what it shares with its parent.

The resident memory of forked processes must not be added up: the pages that they share would count once for each. (A
parent of 400 MiB with eight forked children: the sum of their resident memory was 3,702 MiB, of their proportional
shares 425 MiB.)

A file of its own because it reads processes other than this one, and is loaded on first need.
"""

import os
import sys
from typing import NamedTuple

_PRIVATE = (b"Private_Clean", b"Private_Dirty", b"Private_Hugetlb")


class MemoryShare(NamedTuple):
    """The memory of one process at one moment, in bytes.

    Attributes:
        pss_bytes: the proportional set size: its own pages, and of each shared page its part. The sum over processes is
            the memory that they use together. None where the system does not tell.
        private_bytes: the pages that no other process has: what its end gives back. None as above.
    """

    pss_bytes: int | None
    private_bytes: int | None


UNKNOWN = MemoryShare(None, None)


def memory_share(pid: int) -> MemoryShare:
    """Return the share of a process; unknown if it has ended, belongs to another user, or the system does not tell.

    Cost: the kernel walks the page tables, 0.4 ms for a small process and some 20 ms per GiB, without the GIL.
    """
    if sys.platform != "linux":
        return _share_from_psutil(pid)
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb", buffering=0) as file:
            return parse_rollup(file.read(8192))
    except OSError:
        return UNKNOWN


def process_start(pid: int) -> str:
    """Return when a process has started, by the system's clock: the same id with another start is another process.

    Empty where there is no such process, or it has ended and has not been waited for. Where the system does not tell,
    it is the id of a process that is there.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return "" if os.path.isdir("/proc/self") or not _is_there(pid) else str(pid)
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _is_there(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # there a signal of 0 would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def parse_rollup(text: bytes) -> MemoryShare:
    """Return the share that the text of a `smaps_rollup` file tells; a field that is missing makes it unknown."""
    fields: dict[bytes, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdigit() and words[2] == b"kB":
            fields[words[0].rstrip(b":")] = int(words[1]) * 1024
    found = [fields.get(name) for name in _PRIVATE]
    private = None if None in found[:2] else sum(size or 0 for size in found)
    return MemoryShare(fields.get(b"Pss"), private)


def _share_from_psutil(pid: int) -> MemoryShare:
    try:
        from memtools.readings._psutil import unique_bytes

        return MemoryShare(None, unique_bytes(pid))
    except (ImportError, OSError):
        return UNKNOWN
