"""psutil as the second way: fields by name, its errors as ours, a process remade after a fork."""

import errno
import os
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from memtools.readings import ReadingError, _limits, _psutil, available_bytes, physical_bytes, resident_bytes
from memtools.readings._process import read_with_psutil

MIB = 2**20


def pretend(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], object]) -> None:
    process = SimpleNamespace(memory_info=answer)
    monkeypatch.setattr(_psutil, "_cached", (os.getpid(), process))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rss": 5, "vms": 9, "shared": 2}, (9, 5, 2, None)),
        ({"rss": 5, "vms": 9}, (9, 5, None, None)),
        ({"rss": 5, "vms": 9, "peak_wset": 8}, (9, 5, None, 8)),
        ({"rss": 5, "vms": 9, "peak_rss": 8}, (9, 5, None, 8)),
        ({"rss": 5, "vms": 9, "peak_rss": 0}, (9, 5, None, None)),
    ],
)
def test_fields_are_read_by_their_names(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, int], expected: tuple[int | None, ...]
) -> None:
    pretend(monkeypatch, lambda: SimpleNamespace(**fields))

    assert read_with_psutil() == expected


def test_second_way_agrees_with_the_first() -> None:
    assert read_with_psutil()[1] == pytest.approx(resident_bytes(), abs=2 * MIB)


@pytest.mark.parametrize(
    "refusal", [psutil.AccessDenied(1), psutil.NoSuchProcess(1), OSError(errno.EMFILE, "Too many open files")]
)
def test_refusal_of_psutil_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, refusal: Exception) -> None:
    def refuse() -> object:
        raise refusal

    pretend(monkeypatch, refuse)

    with pytest.raises(ReadingError, match="cannot be read"):
        read_with_psutil()


def test_first_refusal_is_the_one_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> object:
        raise ImportError("no module named psutil")

    pretend(monkeypatch, refuse)

    with pytest.raises(ReadingError) as caught:
        read_with_psutil(OSError(errno.EMFILE, "Too many open files", "/proc/self/statm"))

    assert (caught.value.errno, caught.value.filename) == (errno.EMFILE, "/proc/self/statm")


def test_process_is_kept_and_remade_in_a_child(in_child: Callable[..., object]) -> None:
    read_with_psutil()
    first = _psutil._process()

    assert _psutil._process() is first
    assert first.pid == os.getpid()
    assert in_child(lambda: _psutil._process().pid == os.getpid()) is True


def test_machine_is_asked_of_psutil_where_meminfo_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = (physical_bytes(), available_bytes())
    monkeypatch.setattr(_limits, "meminfo_bytes", lambda tree, label: None)

    assert physical_bytes() == told[0]
    assert available_bytes() == pytest.approx(told[1], rel=0.2)


def test_machine_that_cannot_be_asked_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(_limits, "meminfo_bytes", lambda tree, label: None)
    monkeypatch.setattr(_psutil, "physical_bytes", refuse)
    monkeypatch.setattr(_psutil, "available_bytes", refuse)

    assert (physical_bytes(), available_bytes()) == (None, None)
