"""The content of kernel files: numbers, absent files, unreadable files."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.readings._cgroups import KernelFiles, under_root

PATH = "/sys/fs/cgroup/memory.max"


def files_with(content: bytes | OSError) -> KernelFiles:
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
def test_number_is_parsed(content: bytes, number: int) -> None:
    files = files_with(content)

    assert files.read_number(PATH) == number
    assert files.unreadable == []


@pytest.mark.parametrize("content", [b"max\n", b"max", b"max\r\n"])
def test_max_is_none_and_not_unreadable(content: bytes) -> None:
    files = files_with(content)

    assert files.read_number(PATH) is None
    assert files.unreadable == []


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
def test_invalid_number_is_unreadable(content: bytes) -> None:
    files = files_with(content)

    assert files.read_number(PATH) is None
    assert files.unreadable == [PATH]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ENODEV])
def test_absent_file_is_not_unreadable(number: int) -> None:
    files = files_with(OSError(number, os.strerror(number)))

    assert files.read_number(PATH) is None
    assert files.unreadable == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE])
def test_file_that_cannot_be_read_is_unreadable(number: int) -> None:
    files = files_with(OSError(number, os.strerror(number)))

    assert files.read_number(PATH) is None
    assert files.unreadable == [PATH]


def test_path_with_a_nul_is_unreadable(tmp_path: Path) -> None:
    files = KernelFiles(under_root(tmp_path))

    assert files.read_number("/a\0b") is None
    assert files.unreadable == ["/a\0b"]


@pytest.mark.parametrize(
    ("content", "number", "is_unreadable"),
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
def test_field_is_found_by_its_whole_name(content: bytes, number: int | None, is_unreadable: bool) -> None:
    files = files_with(content)

    assert files.read_field(PATH, b"inactive_file") == number
    assert files.unreadable == ([PATH] if is_unreadable else [])


@given(st.binary(max_size=80))
def test_any_content_is_a_number_or_none(content: bytes) -> None:
    number = files_with(content).read_number(PATH)

    assert number is None or number >= 0
    assert files_with(content).read_field(PATH, b"anon") is None or b"anon" in content


@pytest.mark.parametrize("root", ["", "/"])
def test_files_are_read_below_their_root(tmp_path: Path, root: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_bytes(b"MemTotal: 5 kB\n")

    assert under_root(str(tmp_path) + root)("/proc/meminfo") == b"MemTotal: 5 kB\n"
    assert under_root(tmp_path)("/proc/meminfo") == b"MemTotal: 5 kB\n"
