"""The kept descriptor: what may happen to it, and that no answer is ever another file's."""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memtools.readings import ReadingError

if sys.platform == "win32":
    pytest.skip("os.pread does not exist on Windows", allow_module_level=True)

from memtools.readings._statm import Statm

PAGE = os.sysconf("SC_PAGE_SIZE")
GOOD = "4320 3548 1762 7 0 2090 0\n"
SECOND_WAY = (1, 2, 3, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "statm"
    path.write_text(GOOD)
    return path


@pytest.fixture
def make_statm(path: Path) -> Iterator[Callable[..., Statm]]:
    made: list[Statm] = []

    def make(**choices: object) -> Statm:
        statm = Statm(str(path), **{"fallback": lambda error: SECOND_WAY} | choices)  # type: ignore[arg-type]
        made.append(statm)
        return statm

    yield make
    for statm in made:
        statm.reset()


def descriptor(statm: Statm) -> int:
    return statm._opened[0]


def test_pages_are_told_in_bytes(make_statm: Callable[..., Statm]) -> None:
    statm = make_statm()

    assert statm.resident_bytes() == 3548 * PAGE
    assert statm.fields() == (4320 * PAGE, 3548 * PAGE, 1762 * PAGE, None)


def test_nothing_is_opened_before_the_first_reading(make_statm: Callable[..., Statm]) -> None:
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


def test_reading_goes_on_when_somebody_closes_our_descriptor(make_statm: Callable[..., Statm]) -> None:
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
def test_number_that_was_given_to_another_file_is_noticed(
    make_statm: Callable[..., Statm], tmp_path: Path, content: bytes, ask: Callable[[Statm], int]
) -> None:
    statm = make_statm()
    statm.resident_bytes()
    taken = descriptor(statm)
    other = tmp_path / "other"
    other.write_bytes(content)
    with open(other, "rb") as stranger:
        os.dup2(stranger.fileno(), taken)
    try:
        assert ask(statm) == 3548 * PAGE
        assert descriptor(statm) != taken
        os.fstat(taken)  # the stranger's descriptor is still open: it is not ours to close
    finally:
        os.close(taken)


def test_number_that_was_given_to_a_pipe_is_noticed_and_nothing_is_taken_from_it(
    make_statm: Callable[..., Statm],
) -> None:
    statm = make_statm()
    statm.resident_bytes()
    reading_end, writing_end = os.pipe()
    taken = descriptor(statm)
    os.dup2(reading_end, taken)
    os.write(writing_end, GOOD.encode())
    try:
        assert statm.resident_bytes() == 3548 * PAGE
        assert os.read(reading_end, 100) == GOOD.encode()
    finally:
        for number in (reading_end, writing_end, taken):
            os.close(number)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOENT, errno.EACCES])
def test_second_way_is_taken_while_the_file_cannot_be_opened(make_statm: Callable[..., Statm], number: int) -> None:
    refusals = [OSError(number, os.strerror(number))] * 2
    reasons: list[Exception] = []

    def open_file(path: str, flags: int) -> int:
        if refusals:
            raise refusals.pop()
        return os.open(path, flags)

    def otherwise(error: Exception) -> tuple[int, int, int, int]:
        reasons.append(error)
        return SECOND_WAY

    statm = make_statm(open_file=open_file, fallback=otherwise)

    assert (statm.resident_bytes(), statm.fields()) == (2, SECOND_WAY)
    assert [reason.errno for reason in reasons if isinstance(reason, OSError)] == [number, number]
    assert statm.resident_bytes() == 3548 * PAGE


def test_file_that_is_no_statm_is_never_believed(make_statm: Callable[..., Statm], path: Path) -> None:
    path.write_text("1 2 3 4 5 6 seven\n")
    before = len(os.listdir("/dev/fd"))
    statm = make_statm()

    assert statm.resident_bytes() == SECOND_WAY[1]
    assert len(os.listdir("/dev/fd")) == before


def test_refusal_of_both_ways_is_told(make_statm: Callable[..., Statm]) -> None:
    def open_file(path: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files", path)

    def otherwise(error: Exception) -> tuple[int, int, int, int]:
        raise ReadingError(errno.EMFILE, "no way")

    with pytest.raises(ReadingError, match="no way"):
        make_statm(open_file=open_file, fallback=otherwise).resident_bytes()


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


def test_forgetting_closes_the_descriptor_once(make_statm: Callable[..., Statm]) -> None:
    statm = make_statm()
    statm.resident_bytes()
    kept = descriptor(statm)

    statm.reset()
    statm.reset()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)


def test_forgetting_leaves_a_strangers_descriptor_open(make_statm: Callable[..., Statm], tmp_path: Path) -> None:
    statm = make_statm()
    statm.resident_bytes()
    taken = descriptor(statm)
    with open(tmp_path / "other", "w") as stranger:
        os.dup2(stranger.fileno(), taken)

    statm.reset()

    os.close(taken)  # fails if it had been closed for us
