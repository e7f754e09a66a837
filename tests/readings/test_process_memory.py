"""The memory of the real process: threads, forked and spawned children, exhausted descriptors."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from memtools.readings import _process, peak_bytes, read_process, resident_bytes, virtual_bytes

MIB = 2**20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self is Linux")


def fill(size_bytes: int) -> bytearray:
    """Memory that is really there: every page has been written to."""
    return bytearray(b"\x01") * size_bytes


def test_resident_memory_agrees_with_psutil() -> None:
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, abs=2 * MIB)
    assert virtual_bytes() == pytest.approx(psutil.Process().memory_info().vms, abs=8 * MIB)


def test_resident_memory_follows_what_is_allocated() -> None:
    before = resident_bytes()

    block = fill(50 * MIB)

    assert resident_bytes() - before == pytest.approx(len(block), abs=5 * MIB)


def test_record_is_of_one_piece() -> None:
    memory = read_process()

    assert memory.resident_bytes <= memory.peak_bytes
    assert memory.resident_bytes < memory.virtual_bytes
    assert memory.shared_bytes is None or 0 < memory.shared_bytes <= memory.resident_bytes
    assert str(memory).startswith("resident ")


def test_other_threads_read_the_same_process() -> None:
    answers: list[int] = []
    reader = threading.Thread(target=lambda: answers.append(resident_bytes()))

    reader.start()
    reader.join()

    assert answers[0] == pytest.approx(resident_bytes(), abs=5 * MIB)


def test_forked_child_reads_its_own_memory(in_child: Callable[..., object]) -> None:
    before = resident_bytes()

    def grow() -> tuple[int, int]:
        inherited = resident_bytes()
        block = fill(50 * MIB)
        return inherited, resident_bytes() + 0 * len(block)

    inherited, grown = in_child(grow)  # type: ignore[misc]

    assert grown - inherited == pytest.approx(50 * MIB, abs=5 * MIB)
    assert resident_bytes() < before + 25 * MIB


def test_grandchild_reads_its_own_memory(in_child: Callable[..., object]) -> None:
    def grow() -> int:
        before = resident_bytes()
        block = fill(50 * MIB)
        return resident_bytes() - before + 0 * len(block)

    resident_bytes()
    assert in_child(lambda: in_child(grow)) == pytest.approx(50 * MIB, abs=5 * MIB)


@on_linux
def test_child_of_a_fork_that_python_never_heard_of_reads_its_own_memory(in_child: Callable[..., object]) -> None:
    # The GIL is kept across the call, so the child may go on running Python; no hook of ours is called.
    raw_fork = ctypes.PyDLL(None).fork

    def grow() -> int:
        before = resident_bytes()
        block = fill(50 * MIB)
        return resident_bytes() - before + 0 * len(block)

    resident_bytes()
    assert in_child(grow, fork=raw_fork) == pytest.approx(50 * MIB, abs=5 * MIB)


@on_linux
def test_forked_child_keeps_no_descriptor_of_its_parent(in_child: Callable[..., object]) -> None:
    resident_bytes()

    def open_statms() -> list[str]:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return [os.readlink(link) for link in links if os.path.exists(link) and "statm" in os.readlink(link)]

    assert len(open_statms()) == 1
    assert in_child(open_statms) == []
    resident_bytes()
    assert in_child(lambda: (resident_bytes(), len(open_statms()))[1]) == 1


@on_linux
def test_child_forked_in_the_middle_of_an_opening_is_not_locked_out(in_child: Callable[..., object]) -> None:
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with _process._statm._lock:
            is_held.set()
            may_end.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    try:
        assert in_child(resident_bytes) == pytest.approx(resident_bytes(), rel=0.9)
    finally:
        may_end.set()
        holder.join()


def run_alone(program: str) -> str:
    """Run a program in a new interpreter, from a folder that is not the checkout."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@on_linux
def test_daemon_that_closes_everything_goes_on_reading() -> None:
    program = """
import os, psutil
from memtools.readings import resident_bytes, _process
resident_bytes()
kept = _process._statm._opened[0]
os.closerange(3, 1000)
first_to_open = open(os.devnull, "rb")
assert first_to_open.fileno() == kept
block = bytearray(b"x") * (30 << 20)
assert abs(resident_bytes() - psutil.Process().memory_info().rss) < 1 << 20
os.fstat(kept)
print("same")
"""
    assert run_alone(program) == "same"


@on_linux
def test_exhausted_descriptors_do_not_stop_a_reader_that_has_its_own() -> None:
    program = """
import os, resource
from memtools.readings import resident_bytes
resident_bytes()
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
print(resident_bytes() > 5_000_000)
"""
    assert run_alone(program) == "True"


@on_linux
def test_exhausted_descriptors_are_a_clear_error_on_first_use_and_no_number() -> None:
    program = """
import errno, resource
from memtools.readings import ReadingError, resident_bytes
resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    resident_bytes()
except ReadingError as error:
    print(error.errno == errno.EMFILE, error)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(resident_bytes() > 5_000_000)
"""
    first, second = run_alone(program).splitlines()

    assert first.startswith("True")
    assert "Too many open files" in first
    assert second == "True"


def test_spawned_child_reports_its_own_peak_and_not_its_parents() -> None:
    block = fill(200 * MIB)

    peak = int(run_alone("from memtools.readings import peak_bytes; print(peak_bytes())"))

    assert peak_bytes() > len(block)
    assert peak < 100 * MIB


@on_linux
def test_importing_opens_nothing_and_loads_no_psutil() -> None:
    program = """
import os, sys, threading
before = len(os.listdir("/proc/self/fd"))
import memtools.readings
print(len(os.listdir("/proc/self/fd")) - before, threading.active_count(), "psutil" in sys.modules)
"""
    assert run_alone(program) == "0 1 False"


@on_linux
@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_platform_without_statm_is_read_by_psutil(platform: str) -> None:
    # psutil and what it loads have to come first: they choose by the same name.
    program = f"""
import asyncio, ctypes, logging, psutil, resource, subprocess, sys, tempfile
sys.platform = {platform!r}
import memtools.readings as readings
assert "memtools.readings._statm" not in sys.modules
before = readings.read_process()
block = bytearray(b"x") * (30 << 20)
grown = readings.resident_bytes() - before.resident_bytes
assert 28 << 20 < grown < 35 << 20, grown
assert readings.peak_bytes() >= before.peak_bytes >= before.resident_bytes
assert readings.virtual_bytes() > readings.resident_bytes()
assert readings.PeakSince().peak_bytes() is None
assert readings.physical_bytes() > readings.available_bytes() > 0
print("right")
"""
    assert run_alone(program) == "right"
