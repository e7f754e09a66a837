"""The monitor on a real process: page cache, forks, limits of the system, the end of the interpreter."""

import asyncio
import mmap
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from memtools import BoundedList, Level, MemoryMonitor
from memtools.readings import headroom, resident_bytes

PROGRAMS = Path(__file__).with_name("programs")
MIB = 2**20
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="these limits are Linux's")


def _run(program: str | Path) -> str:
    words = [str(program)] if isinstance(program, Path) else ["-c", textwrap.dedent(program)]
    command = [sys.executable, "-X", "dev", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_half_a_gigabyte_of_page_cache_changes_no_level(tmp_path):
    room = headroom().value_bytes
    if room is None or room < 1500 * MIB:
        pytest.skip("less than 1.5 GiB are left here, so the cache itself would be squeezed")
    # A quarter of a GiB less room would be seen: half a GiB of cache must not be.
    monitor = MemoryMonitor(resident_bytes() + 256 * MIB, free=room - 256 * MIB, pressure=False)
    monitor.check()

    with open(tmp_path / "big", "wb") as file:
        for _ in range(500):
            file.write(b"x" * 1_000_000)
        file.flush()
        os.fsync(file.fileno())
    for _ in range(5):
        monitor.check()

    assert monitor.level is Level.NORMAL
    assert monitor.statistics().level_changes[Level.WARNING] == 0


async def test_leak_into_a_bounded_list_is_freed_and_service_goes_on():
    # Pages of their own: what goes back to the allocator alone shows in no reading.
    leak = BoundedList[mmap.mmap](maxlen=100_000)
    monitor = MemoryMonitor(resident_bytes() + 60 * MIB, cleanup_interval=0, sample_every=5, min_interval=0.02)
    levels = []
    monitor.on_warning(lambda change: levels.append(change.after))

    @monitor.watch
    async def request():
        pages = mmap.mmap(-1, MIB // 8)
        pages.write(b"x" * (MIB // 8))
        leak.append(pages)
        await asyncio.sleep(0)

    async with monitor:
        for _ in range(1000):
            await request()
        for _ in range(200):
            # The first clean-up may run out of time on a busy machine, and leaves the rest to the next.
            if levels and monitor.statistics().freed_bytes > 20 * MIB:
                break
            await asyncio.sleep(0.05)

    statistics = monitor.statistics()
    assert levels[0] is Level.WARNING
    assert statistics.cleanups >= 1
    assert statistics.freed_bytes > 20 * MIB
    assert statistics.failures == 0
    assert len(leak) < 1000


@needs_fork
def test_monitor_survives_a_hundred_forks_under_load():
    out = _run(PROGRAMS / "monitor_and_forks.py")

    assert out.split() == ["100"]


@needs_fork
def test_forked_child_of_a_loop_samples_on_operations():
    out = _run(PROGRAMS / "monitor_in_a_forked_child.py")

    assert out.split() == ["7"]


@needs_linux
def test_monitor_without_space_for_a_thread_still_samples():
    out = _run("""
        import resource, threading
        from memtools import MemoryMonitor
        from memtools.readings import virtual_bytes
        monitor = MemoryMonitor("95%", sample_every=1)
        monitor.check()
        threading.stack_size(1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes() + (64 << 20),) * 2)
        with monitor:
            monitor.record("job", 0.1)
            print(monitor.statistics().mode, monitor.statistics().samples > 1)
    """)

    assert out.split() == ["none", "True"]


@needs_linux
def test_monitor_without_descriptors_starts_samples_and_stops():
    out = _run(PROGRAMS / "monitor_without_descriptors.py")

    assert out.split() == ["task", "thread"]


@pytest.mark.parametrize("form", ["monitor.start()", "asyncio.run(monitor.__aenter__())", "monitor.check()"])
def test_interpreter_ending_with_a_monitor_only_warns(form):
    out = _run(f"""
        import asyncio
        from memtools import MemoryMonitor
        monitor = MemoryMonitor("95%", min_interval=0.001, max_interval=0.001)
        {form}
        print("done")
    """)

    assert out.split() == ["done"]
