"""The psutil fallback: fields by name, errors as ReadingError, one process object per pid."""

import errno
import os
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from memtools.errors import ReadingError
from memtools.readings import _limits, _psutil, available_bytes, physical_bytes, resident_bytes
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
def test_psutil_fields_are_read_by_name(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, int], expected: tuple[int | None, ...]
) -> None:
    pretend(monkeypatch, lambda: SimpleNamespace(**fields))

    assert read_with_psutil() == expected


def test_psutil_agrees_with_statm() -> None:
    assert read_with_psutil()[1] == pytest.approx(resident_bytes(), abs=2 * MIB)


@pytest.mark.parametrize(
    "error", [psutil.AccessDenied(1), psutil.NoSuchProcess(1), OSError(errno.EMFILE, "Too many open files")]
)
def test_psutil_error_is_raised_as_reading_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> object:
        raise error

    pretend(monkeypatch, fail)

    with pytest.raises(ReadingError, match="cannot be read"):
        read_with_psutil()


def test_reading_error_carries_the_first_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> object:
        raise ImportError("no module named psutil")

    pretend(monkeypatch, fail)

    with pytest.raises(ReadingError) as caught:
        read_with_psutil(OSError(errno.EMFILE, "Too many open files", "/proc/self/statm"))

    assert (caught.value.errno, caught.value.filename) == (errno.EMFILE, "/proc/self/statm")


def test_psutil_process_is_cached_and_renewed_in_a_child(in_child: Callable[..., object]) -> None:
    read_with_psutil()
    first = _psutil._process()

    assert _psutil._process() is first
    assert first.pid == os.getpid()
    assert in_child(lambda: _psutil._process().pid == os.getpid()) is True


def test_machine_memory_without_meminfo_is_from_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (physical_bytes(), available_bytes())
    monkeypatch.setattr(_limits, "meminfo_bytes", lambda files, name: None)

    assert physical_bytes() == expected[0]
    assert available_bytes() == pytest.approx(expected[1], rel=0.2)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="there is no sysconf here")
def test_machine_memory_is_known_without_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    known = physical_bytes()
    monkeypatch.setattr(_limits, "meminfo_bytes", lambda files, name: None)
    monkeypatch.setattr(_psutil, "physical_bytes", fail)

    found = physical_bytes()

    assert known is not None
    assert found is not None
    assert abs(found - known) <= known // 10  # a container may be shown a part of the machine


def test_machine_memory_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(_limits, "meminfo_bytes", lambda files, name: None)
    monkeypatch.setattr(_psutil, "physical_bytes", fail)
    monkeypatch.setattr(_psutil, "available_bytes", fail)
    monkeypatch.delattr(os, "sysconf")

    assert (physical_bytes(), available_bytes()) == (None, None)
