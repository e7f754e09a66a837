"""Peaks: from the kernel, from the readings, and since a moment."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memtools.readings import peak_bytes, resident_bytes
from memtools.readings._process import PeakMemory, PeakSince, kernel_peak_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("Name:\tpython\nVmHWM:\t   12345 kB\nVmRSS:\t 1 kB\n", 12345 * 1024),
        ("Name:\tVmHWM: 5 kB\nVmRSS:\t 1 kB\n", None),  # a process may have any name
        ("Name:\tpython\nVmRSS:\t 1 kB\n", None),
        ("Name:\tpython\nVmHWM:\t 5 MB\n", None),
        ("Name:\tpython\nVmHWM:\t -5 kB\n", None),
        ("Name:\tpython\nVmHWM:", None),
        ("", None),
    ],
)
def test_kernel_peak_is_read_from_its_line(tmp_path: Path, status: str, expected: int | None) -> None:
    path = tmp_path / "status"
    path.write_text(status)

    assert kernel_peak_bytes(str(path)) == expected


def test_kernel_peak_is_not_known_without_the_file(tmp_path: Path) -> None:
    assert kernel_peak_bytes(str(tmp_path / "missing")) is None


def test_peak_is_never_below_the_current_figure() -> None:
    peak = PeakMemory(kernel_peak=lambda: 100)

    assert [peak.update(90), peak.update(110)] == [100, 110]


def scripted(*figures: int | None) -> Callable[[], PeakSince]:
    script: Iterator[int | None] = iter(figures)
    return lambda: PeakSince(measure=lambda: next(script))


def test_peak_without_kernel_support_is_the_highest_reading() -> None:
    peak = PeakMemory(kernel_peak=lambda: None, peak_since=scripted(900, 900, 900, 900))

    assert [peak.update(50), peak.update(80), peak.update(60)] == [50, 80, 80]


def test_peak_without_kernel_support_includes_unread_rises() -> None:
    peak = PeakMemory(kernel_peak=lambda: None, peak_since=scripted(50, 50, 300))

    assert [peak.update(50), peak.update(60)] == [50, 300]


def test_reset_peak_starts_from_zero() -> None:
    peak = PeakMemory(kernel_peak=lambda: None, peak_since=scripted(0, 0, 0, 0))
    peak.update(500)

    peak.reset()

    assert peak.update(70) == 70


def test_peak_includes_freed_memory() -> None:
    block = bytearray(b"\x01") * (60 * MIB)
    with_block = resident_bytes()

    del block

    assert peak_bytes() >= with_block - 2 * MIB


@pytest.mark.parametrize(
    ("before", "after", "risen"),
    [(100, 100, None), (100, 150, 150), (100, 90, None), (None, None, None)],
)
def test_peak_since_is_known_only_if_it_rose(before: int | None, after: int | None, risen: int | None) -> None:
    figures = iter((before, after))

    since = PeakSince(measure=lambda: next(figures))

    assert since.peak_bytes() == risen


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_peak_since_reports_a_peak_that_is_over(in_child: Callable[..., object]) -> None:
    def work() -> tuple[int | None, int | None, int]:
        # Above anything that this process had before, so that the figure must rise.
        ballast = bytearray(b"\x01") * (peak_bytes() - resident_bytes() + MIB)
        since = PeakSince()
        block = bytearray(b"\x01") * (80 * MIB)
        truth = resident_bytes() + 0 * len(ballast)
        del block
        first = since.peak_bytes()
        small = PeakSince()
        block = bytearray(b"\x01") * (10 * MIB)
        return first, small.peak_bytes(), truth + 0 * len(block)

    risen, not_risen, truth = in_child(work)  # type: ignore[misc]

    assert risen == pytest.approx(truth, abs=4 * MIB)
    # The kernel counts resident pages for each processor, and adds up late: the last few are seen after the reading.
    assert not_risen is None or not_risen - risen < MIB


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone carries ru_maxrss over exec")
def test_peak_since_in_a_spawned_child_ignores_its_parent(in_child: Callable[..., object]) -> None:
    program = (
        "from memtools.readings._process import PeakSince; since = PeakSince();"
        "block = bytearray(b'x') * (20 << 20); print(since.peak_bytes())"
    )

    def spawn() -> str:
        block = bytearray(b"\x01") * (200 * MIB)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write_end, 1)
            os.execv(sys.executable, [sys.executable, "-c", program])
        os.waitpid(child, 0)
        return os.read(read_end, 100).decode().strip() + "" * len(block)

    assert in_child(spawn) == "None"
