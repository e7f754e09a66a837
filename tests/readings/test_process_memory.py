"""Memory of the real process: threads, forked and spawned children, exhausted descriptors."""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from memtools.readings import _process, peak_bytes, read_process, resident_bytes, virtual_bytes

MIB = 2**20
PROGRAMS = Path(__file__).parent / "programs"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self is Linux")


def fill(size_bytes: int) -> mmap.mmap:
    """Return new memory of which every page has been written to.

    It is mapped: `malloc` may reuse free pages of the heap that are resident already.
    """
    block = mmap.mmap(-1, size_bytes, access=mmap.ACCESS_COPY)
    for offset in range(0, size_bytes, mmap.PAGESIZE):
        block[offset] = 1
    return block


def test_resident_memory_agrees_with_psutil() -> None:
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, abs=2 * MIB)
    assert virtual_bytes() == pytest.approx(psutil.Process().memory_info().vms, abs=8 * MIB)


def test_resident_memory_follows_allocations() -> None:
    before = resident_bytes()

    block = fill(50 * MIB)

    assert resident_bytes() - before == pytest.approx(len(block), abs=5 * MIB)


def test_process_memory_fields_are_consistent() -> None:
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
def test_child_forked_by_c_code_reads_its_own_memory(in_child: Callable[..., object]) -> None:
    # The GIL is kept across the call, so the child may go on running Python; no after-fork hook is called.
    raw_fork = ctypes.PyDLL(None).fork

    def grow() -> int:
        before = resident_bytes()
        block = fill(50 * MIB)
        return resident_bytes() - before + 0 * len(block)

    resident_bytes()
    assert in_child(grow, fork=raw_fork) == pytest.approx(50 * MIB, abs=5 * MIB)


@on_linux
def test_forked_child_closes_the_inherited_descriptor(in_child: Callable[..., object]) -> None:
    resident_bytes()

    def open_statms() -> list[str]:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return [os.readlink(link) for link in links if os.path.exists(link) and "statm" in os.readlink(link)]

    assert len(open_statms()) == 1
    assert in_child(open_statms) == []
    resident_bytes()
    assert in_child(lambda: (resident_bytes(), len(open_statms()))[1]) == 1


@on_linux
def test_child_forked_while_the_lock_is_held_can_read(in_child: Callable[..., object]) -> None:
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
    """Run a program text in a new interpreter and return its output."""
    return _output_of("-c", program)


def run_program(name: str, *arguments: str) -> str:
    """Run a file of `programs` in a new interpreter and return its output."""
    return _output_of(str(PROGRAMS / name), *arguments)


def _output_of(*arguments: str) -> str:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@on_linux
def test_daemon_that_closes_all_descriptors_can_read() -> None:
    assert run_program("close_all_descriptors.py") == "same"


@on_linux
def test_open_descriptor_is_read_without_free_descriptors() -> None:
    program = """
import os, resource
from memtools.readings import resident_bytes
resident_bytes()
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
print(resident_bytes() > 5_000_000)
"""
    assert run_alone(program) == "True"


@on_linux
def test_first_reading_without_free_descriptors_raises() -> None:
    first, second = run_program("exhaust_descriptors.py").splitlines()

    assert first.startswith("True")
    assert "Too many open files" in first
    assert second == "True"


def test_spawned_child_reports_its_own_peak() -> None:
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
    assert run_program("read_without_statm.py", platform) == "right"
