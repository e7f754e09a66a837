"""What the small files of the kernel may hold, and what counts as told, absent or a gap."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.readings._cgroups import KernelFiles, under_root

PATH = "/sys/fs/cgroup/memory.max"


def tree_of(content: bytes | OSError) -> KernelFiles:
    def read(path: str) -> bytes:
        if isinstance(content, OSError):
            raise content
        return content

    return KernelFiles(read)


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"1048576\n", 1048576),
        (b"1048576", 1048576),
        (b"1048576\r\n", 1048576),
        (b"0\n", 0),
        (b"1" + b"0" * 30 + b"\n", 10**30),
    ],
)
def test_number_is_understood(content: bytes, number: int) -> None:
    tree = tree_of(content)

    assert tree.read_number(PATH) == number
    assert tree.unreadable == []


@pytest.mark.parametrize("content", [b"max\n", b"max", b"max\r\n"])
def test_max_is_no_limit_and_no_gap(content: bytes) -> None:
    tree = tree_of(content)

    assert tree.read_number(PATH) is None
    assert tree.unreadable == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"-1\n",
        b"abc\n",
        b"maximum\n",
        b"1 2\n",
        b"1_000\n",
        b"+5\n",
        b"5.0\n",
        b"0x10\n",
        b"1048576\0\n",
        b"\0\0\0\0",
        "٣\n".encode(),
        b"9" * 5000,
    ],
)
def test_what_no_kernel_writes_is_a_gap_and_never_a_number(content: bytes) -> None:
    tree = tree_of(content)

    assert tree.read_number(PATH) is None
    assert tree.unreadable == [PATH]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ENODEV])
def test_what_is_not_there_is_no_gap(number: int) -> None:
    tree = tree_of(OSError(number, os.strerror(number)))

    assert tree.read_number(PATH) is None
    assert tree.unreadable == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE])
def test_what_may_not_be_read_is_a_gap(number: int) -> None:
    tree = tree_of(OSError(number, os.strerror(number)))

    assert tree.read_number(PATH) is None
    assert tree.unreadable == [PATH]


def test_path_that_no_system_takes_is_a_gap(tmp_path: Path) -> None:
    tree = KernelFiles(under_root(tmp_path))

    assert tree.read_number("/a\0b") is None
    assert tree.unreadable == ["/a\0b"]


@pytest.mark.parametrize(
    ("content", "number", "is_gap"),
    [
        (b"anon 5\ninactive_file 7\n", 7, False),
        (b"total_inactive_file 9\ninactive_file 7\n", 7, False),
        (b"total_inactive_file 9\n", None, False),
        (b"", None, False),
        (b"inactive_file\n", None, True),
        (b"inactive_file -7\n", None, True),
        (b"inactive_file: 7 kB\n", 7, False),
    ],
)
def test_labelled_number_is_found_by_its_whole_label(content: bytes, number: int | None, is_gap: bool) -> None:
    tree = tree_of(content)

    assert tree.read_field(PATH, b"inactive_file") == number
    assert tree.unreadable == ([PATH] if is_gap else [])


@given(st.binary(max_size=80))
def test_no_content_at_all_breaks_the_reader(content: bytes) -> None:
    number = tree_of(content).read_number(PATH)

    assert number is None or number >= 0
    assert tree_of(content).read_field(PATH, b"anon") is None or b"anon" in content


@pytest.mark.parametrize("root", ["", "/"])
def test_files_are_read_below_their_root(tmp_path: Path, root: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_bytes(b"MemTotal: 5 kB\n")

    assert under_root(str(tmp_path) + root)("/proc/meminfo") == b"MemTotal: 5 kB\n"
    assert under_root(tmp_path)("/proc/meminfo") == b"MemTotal: 5 kB\n"
