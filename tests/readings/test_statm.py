"""The kept descriptor of statm: everything that can happen to it."""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memtools.errors import ReadingError

if sys.platform == "win32":
    pytest.skip("os.pread does not exist on Windows", allow_module_level=True)

from memtools.readings._statm import Statm

PAGE = os.sysconf("SC_PAGE_SIZE")
GOOD = "4320 3548 1762 7 0 2090 0\n"
FALLBACK = (1, 2, 3, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "statm"
    path.write_text(GOOD)
    return path


@pytest.fixture
def make_statm(path: Path) -> Iterator[Callable[..., Statm]]:
    made: list[Statm] = []

    def make(**choices: object) -> Statm:
        statm = Statm(str(path), **{"fallback": lambda error: FALLBACK} | choices)  # type: ignore[arg-type]
        made.append(statm)
        return statm

    yield make
    for statm in made:
        statm.reset()


def descriptor(statm: Statm) -> int:
    return statm._opened[0]


def test_pages_are_converted_to_bytes(make_statm: Callable[..., Statm]) -> None:
    statm = make_statm()

    assert statm.resident_bytes() == 3548 * PAGE
    assert statm.fields() == (4320 * PAGE, 3548 * PAGE, 1762 * PAGE, None)


def test_file_is_opened_once_at_the_first_reading(make_statm: Callable[..., Statm]) -> None:
    opened: list[str] = []

    def open_file(path: str, flags: int) -> int:
        opened.append(path)
        return os.open(path, flags)

    statm = make_statm(open_file=open_file)
    assert opened == []

    statm.resident_bytes()
    statm.resident_bytes()
    statm.fields()
    assert len(opened) == 1


def test_descriptor_is_not_inherited_by_other_programs(make_statm: Callable[..., Statm]) -> None:
    statm = make_statm()
    statm.resident_bytes()

    assert not os.get_inheritable(descriptor(statm))


def test_descriptor_closed_by_other_code_is_reopened(make_statm: Callable[..., Statm]) -> None:
    statm = make_statm()
    statm.resident_bytes()

    os.close(descriptor(statm))

    assert statm.resident_bytes() == 3548 * PAGE
    os.close(descriptor(statm))
    assert statm.fields()[1] == 3548 * PAGE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1 2 3",
        b"hello world\n",
        b"4320 3548 1762 8 0 2090 0\n",  # another program's statm: its code has another size
        b"4320 3548 1762 7 0 2090 0 1\n",
        b"4320 -5 1762 7 0 2090 0\nx",
        b"cpu  1 2 3 4 5 6 7 8\n",
        b"\0" * 200,
    ],
)
@pytest.mark.parametrize("ask", [Statm.resident_bytes, lambda statm: statm.fields()[1]], ids=["rss", "fields"])
def test_descriptor_number_reused_by_a_file_is_detected(
    make_statm: Callable[..., Statm], tmp_path: Path, content: bytes, ask: Callable[[Statm], int]
) -> None:
    statm = make_statm()
    statm.resident_bytes()
    number_in_use = descriptor(statm)
    other = tmp_path / "other"
    other.write_bytes(content)
    with open(other, "rb") as other_file:
        os.dup2(other_file.fileno(), number_in_use)
    try:
        assert ask(statm) == 3548 * PAGE
        assert descriptor(statm) != number_in_use
        os.fstat(number_in_use)  # still open: the number belongs to the other file
    finally:
        os.close(number_in_use)


def test_descriptor_number_reused_by_a_pipe_is_not_read_from(
    make_statm: Callable[..., Statm],
) -> None:
    statm = make_statm()
    statm.resident_bytes()
    read_end, write_end = os.pipe()
    number_in_use = descriptor(statm)
    os.dup2(read_end, number_in_use)
    os.write(write_end, GOOD.encode())
    try:
        assert statm.resident_bytes() == 3548 * PAGE
        assert os.read(read_end, 100) == GOOD.encode()
    finally:
        for number in (read_end, write_end, number_in_use):
            os.close(number)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOENT, errno.EACCES])
def test_fallback_is_used_while_the_file_cannot_be_opened(make_statm: Callable[..., Statm], number: int) -> None:
    errors = [OSError(number, os.strerror(number))] * 2
    reasons: list[Exception] = []

    def open_file(path: str, flags: int) -> int:
        if errors:
            raise errors.pop()
        return os.open(path, flags)

    def fallback(error: Exception) -> tuple[int, int, int, int]:
        reasons.append(error)
        return FALLBACK

    statm = make_statm(open_file=open_file, fallback=fallback)

    assert (statm.resident_bytes(), statm.fields()) == (2, FALLBACK)
    assert [reason.errno for reason in reasons if isinstance(reason, OSError)] == [number, number]
    assert statm.resident_bytes() == 3548 * PAGE


def test_file_with_invalid_content_is_not_used(make_statm: Callable[..., Statm], path: Path) -> None:
    path.write_text("1 2 3 4 5 6 seven\n")
    before = len(os.listdir("/dev/fd"))
    statm = make_statm()

    assert statm.resident_bytes() == FALLBACK[1]
    assert len(os.listdir("/dev/fd")) == before


def test_error_of_the_fallback_is_raised(make_statm: Callable[..., Statm]) -> None:
    def open_file(path: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files", path)

    def fallback(error: Exception) -> tuple[int, int, int, int]:
        raise ReadingError(errno.EMFILE, "no source")

    with pytest.raises(ReadingError, match="no source"):
        make_statm(open_file=open_file, fallback=fallback).resident_bytes()


def test_many_threads_open_one_descriptor(make_statm: Callable[..., Statm]) -> None:
    opened: list[int] = []

    def open_file(path: str, flags: int) -> int:
        opened.append(os.open(path, flags))
        return opened[-1]

    statm = make_statm(open_file=open_file)
    start = threading.Barrier(8)
    answers: list[int] = []

    def read() -> None:
        start.wait()
        answers.extend(statm.resident_bytes() for _ in range(200))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [3548 * PAGE] * 1600
    assert len(opened) == 1


def test_reset_closes_the_descriptor_once(make_statm: Callable[..., Statm]) -> None:
    statm = make_statm()
    statm.resident_bytes()
    kept = descriptor(statm)

    statm.reset()
    statm.reset()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)


def test_reset_keeps_a_reused_descriptor_number_open(make_statm: Callable[..., Statm], tmp_path: Path) -> None:
    statm = make_statm()
    statm.resident_bytes()
    number_in_use = descriptor(statm)
    with open(tmp_path / "other", "w") as other_file:
        os.dup2(other_file.fileno(), number_in_use)

    statm.reset()

    os.close(number_in_use)  # raises if `reset` had closed it
