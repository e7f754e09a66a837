"""Blocks of malloc in the anonymous mappings of a process, of which malloc says only the size."""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from memtools.readings import _mapped_blocks
from memtools.readings._mapped_blocks import resident_of_blocks

MIB = 2**20
PAGE = mmap.PAGESIZE
MAPPING_BYTES = 64 * MIB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are resident")


def said(blocks: int, size_bytes: int) -> Callable[[], SimpleNamespace]:
    """Return what answers as `mallinfo2` does."""
    return lambda: SimpleNamespace(hblks=blocks, hblkhd=size_bytes)


class Mapping:
    """A mapping in which blocks are laid out as malloc and the kernel would."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, MAPPING_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self.memory.madvise(mmap.MADV_NOHUGEPAGE)  # or a touch makes 2 MiB resident on some systems
        self.pages: set[int] = set()

    def touch(self, offset: int, size_bytes: int) -> None:
        self.memory[offset : offset + size_bytes] = b"\x01" * size_bytes
        self.pages.update(range(offset // PAGE, (offset + size_bytes - 1) // PAGE + 1))

    def add_block(self, offset: int, size_bytes: int) -> None:
        self.touch(offset, 16)
        self.memory[offset : offset + 16] = bytes(8) + (size_bytes | 2).to_bytes(8, sys.byteorder)

    @property
    def as_read(self) -> tuple[int, int, int]:
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        return start, start + MAPPING_BYTES, len(self.pages) * PAGE


def test_only_touched_pages_of_blocks_count() -> None:
    mapping = Mapping()
    mapping.touch(0, 3 * MIB)
    mapping.add_block(3 * MIB, 20 * MIB)
    mapping.touch(4 * MIB, 5 * MIB)
    mapping.add_block(23 * MIB, 10 * MIB)
    mapping.touch(40 * MIB, 2 * MIB)

    assert resident_of_blocks([mapping.as_read], said(2, 30 * MIB)) == 5 * MIB + 2 * PAGE


def test_block_that_is_not_found_counts_as_a_whole() -> None:
    mapping = Mapping()
    mapping.add_block(8 * MIB, 20 * MIB)

    assert resident_of_blocks([mapping.as_read], said(2, 33 * MIB)) == 13 * MIB + PAGE


def test_more_than_malloc_says_is_not_believed() -> None:
    mapping = Mapping()
    mapping.add_block(8 * MIB, 20 * MIB)
    mapping.add_block(30 * MIB, 4 * MIB)

    assert resident_of_blocks([mapping.as_read], said(1, 24 * MIB)) == 24 * MIB
    assert resident_of_blocks([mapping.as_read], said(2, 19 * MIB)) == 19 * MIB


@pytest.mark.parametrize(
    "header",
    [(0, 20 * MIB), (1, 20 * MIB | 2), (0, 20 * MIB | 6), (0, 20 * MIB + 16 | 2), (0, 80 * MIB | 2), (0, PAGE | 2)],
)
def test_what_no_header_can_be_is_no_block(header: tuple[int, int]) -> None:
    mapping = Mapping()
    mapping.touch(8 * MIB, 16)
    mapping.memory[8 * MIB : 8 * MIB + 16] = b"".join(word.to_bytes(8, sys.byteorder) for word in header)

    assert resident_of_blocks([mapping.as_read], said(1, 20 * MIB)) == 20 * MIB


def test_mapping_that_is_gone_has_no_blocks() -> None:
    mapping = Mapping()
    mapping.add_block(0, 20 * MIB)
    start, end, _ = mapping.as_read
    mapping.memory.close()

    assert resident_of_blocks([(start, end, PAGE)], said(1, 20 * MIB)) == 20 * MIB


def test_time_that_is_over_leaves_blocks_unfound(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = Mapping()
    mapping.add_block(0, 20 * MIB)
    monkeypatch.setattr(_mapped_blocks, "_MAX_S", -1.0)

    assert resident_of_blocks([mapping.as_read], said(1, 20 * MIB)) == 20 * MIB


def test_without_a_page_map_all_count_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = Mapping()
    mapping.add_block(0, 20 * MIB)
    monkeypatch.setattr(_mapped_blocks, "_PAGEMAP", "/nowhere/pagemap")

    assert resident_of_blocks([mapping.as_read], said(1, 20 * MIB)) == 20 * MIB
