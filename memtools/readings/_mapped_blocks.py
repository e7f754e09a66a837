"""How much is resident of the large blocks of glibc's malloc, each of which has a mapping of its own.

malloc says how many there are and how large they are together, not how much of them was ever touched. A block begins
with its header (`malloc_chunk` of malloc/malloc.c: 0, then the size with the flag IS_MMAPPED), but the kernel joins
adjacent anonymous mappings: a block may begin at any page of one. So the search goes through a mapping page by page,
and over each block in one step. Its result counts only where it is no more than malloc says.
"""

import os
import sys
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

_PAGEMAP: Final = "/proc/self/pagemap"
_MEMORY: Final = "/proc/self/mem"
_PRESENT: Final = 1 << 63  # in an entry of the page map
_IS_MMAPPED: Final = 2
_FLAGS: Final = 7
_PADDINGS: Final = (0, 16)  # of the size to whole pages: since glibc 2.43 the header is not part of it
_MIN_BLOCK_BYTES: Final = 64 << 10  # malloc's threshold is 128 KiB where it was not lowered
_MIN_UNTOUCHED_BYTES: Final = 1 << 20  # less makes no difference that is shown
_MAX_PAGES: Final = 4096  # of one step
_MAX_READ: Final = 256  # pages that one call reads
_MAX_S: Final = 0.1  # the report of a monitor may be asked for in a loop


def resident_of_blocks(mappings: Iterable[tuple[int, int, int]], mallinfo: Callable[[], Any]) -> int:
    """Return how much of the blocks is resident, in bytes; a block that is not found counts as a whole.

    In a mapping that is resident as a whole no block is looked for.

    Args:
        mappings: the anonymous mappings of this process: start, end and resident bytes of each.
        mallinfo: returns the statistics of malloc. Any: a structure of `ctypes`.

    Cost: 0.3 s for each GiB of other memory in mappings of which a part was not touched; about 0.1 s at most.
    """
    said = mallinfo()
    size_bytes = int(said.hblkhd)
    untouched = {mapping: mapping[1] - mapping[0] - mapping[2] for mapping in mappings}
    left = sum(untouched.values())
    if sys.maxsize < 2**32 or min(left, size_bytes) < _MIN_UNTOUCHED_BYTES:
        return size_bytes
    try:
        with open(_PAGEMAP, "rb", buffering=0) as pagemap, open(_MEMORY, "rb", buffering=0) as memory:
            search = _Search(pagemap.fileno(), memory.fileno(), size_bytes)
            for mapping in sorted(untouched, key=untouched.__getitem__, reverse=True):
                if left < _MIN_UNTOUCHED_BYTES:
                    break
                left -= untouched[mapping]
                with suppress(OSError):  # it cannot be read, or not in time: its blocks are not found
                    search.add(*mapping)
    except OSError:
        return size_bytes

    later = mallinfo()  # another thread may have allocated a block meanwhile
    if search.found > max(said.hblks, later.hblks) or search.found_bytes > max(said.hblkhd, later.hblkhd):
        return size_bytes  # something else looked like a block
    return max(size_bytes - search.found_bytes, 0) + search.resident_bytes


class _Search:
    """Looks for blocks in one mapping after the other.

    Args:
        pagemap: a descriptor of the page map.
        memory: a descriptor of the memory: unlike a pointer it refuses what another thread has just unmapped.
        size_bytes: the size of all blocks: when so much has been found, no further header is read.

    Attributes:
        found: how many have been found.
        found_bytes: the size of them.
        resident_bytes: how much of it is resident.
    """

    def __init__(self, pagemap: int, memory: int, size_bytes: int) -> None:
        self.found = self.found_bytes = self.resident_bytes = 0
        self._pagemap = pagemap
        self._memory = memory
        self._size_bytes = size_bytes
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._buffer = memoryview(bytearray(_MAX_READ * self._page_bytes))
        self._deadline = time.monotonic() + _MAX_S

    def add(self, start: int, end: int, resident: int) -> None:
        """Look for blocks in a mapping.

        Raises:
            OSError: when it cannot be read.
            TimeoutError: when the time is over.
        """
        found = found_bytes = 0
        others = 0  # resident pages outside of blocks
        pages = 1
        while start < end:
            # Behind a block there is often another: the first step is a page, and each further one four times as long.
            stop = min(start + pages * self._page_bytes, end)
            present = self._present_pages(start, stop)
            is_complete = self.found_bytes + found_bytes >= self._size_bytes
            block = None if is_complete else self._first_block(present, end)
            if block is None:
                others += len(present)
                start, pages = stop, min(4 * pages, _MAX_PAGES)
            else:
                address, size_bytes = block
                others += bisect_left(present, address)
                found += 1
                found_bytes += size_bytes
                start, pages = address + size_bytes + -size_bytes % self._page_bytes, 1
        self.found += found
        self.found_bytes += found_bytes
        self.resident_bytes += min(max(resident - others * self._page_bytes, 0), found_bytes)

    def _present_pages(self, start: int, stop: int) -> list[int]:
        """Return the addresses of the resident pages."""
        if time.monotonic() > self._deadline:
            raise TimeoutError
        page_bytes = self._page_bytes
        pages = range(start, stop, page_bytes)
        entries = os.pread(self._pagemap, len(pages) * 8, start // page_bytes * 8)
        if entries == bytes(len(pages) * 8):
            return []  # a shortcut: there may be gigabytes of such pages
        if len(entries) < len(pages) * 8:
            raise OSError("the page map ends early")
        return [address for address, entry in zip(pages, array("Q", entries), strict=True) if entry & _PRESENT]

    def _first_block(self, pages: list[int], end: int) -> tuple[int, int] | None:
        """Return address and size of the block that begins first, if one does."""
        first = 0
        while first < len(pages):
            count = min(len(pages) - first, _MAX_READ)
            while pages[first + count - 1] - pages[first] != (count - 1) * self._page_bytes:  # with pages between
                count //= 2
            starts = self._read_starts(pages[first], count)
            for address, before, size in zip(pages[first : first + count], *starts, strict=False):
                if before == 0 and size & _FLAGS == _IS_MMAPPED:
                    size_bytes = size - _IS_MMAPPED
                    padding = -size_bytes % self._page_bytes
                    is_whole = padding in _PADDINGS and address + size_bytes + padding <= end
                    if is_whole and size_bytes >= _MIN_BLOCK_BYTES:
                        return address, size_bytes
            first += count
        return None

    def _read_starts(self, address: int, pages: int) -> tuple[list[int], list[int]]:
        """Return the first words and the second words of so many pages, as far as they are still there."""
        # Whole pages in one call: a call for each page would give the GIL to other threads as often.
        read = os.preadv(self._memory, [self._buffer[: pages * self._page_bytes]], address)
        words, step = self._buffer.cast("Q"), self._page_bytes // 8
        return words[0 : read // 8 : step].tolist(), words[1 : read // 8 : step].tolist()
