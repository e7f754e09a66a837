"""The pressure watch: its source, its wake-ups, its descriptors. A FIFO stands for the kernel."""

import asyncio
import os
import select
import sys
import threading
import time

import pytest

from memtools.events import PressureSignal
from memtools.monitor._loops import PressureSource, PressureWatch, open_source, open_watch
from memtools.readings import Headroom, LimitHeadroom, LimitSource

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports memory pressure")


@pytest.fixture
def fifo(tmp_path, monkeypatch):
    path = str(tmp_path / "pressure")
    os.mkfifo(path)
    monkeypatch.setenv("MEMORY_PRESSURE_WATCH", path)
    return path


def _write(path):
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(fd, b"x")
        time.sleep(0.05)
    finally:
        os.close(fd)


async def test_pressure_signal_wakes_the_task_and_names_its_source(make, fifo, events):
    monitor = make(pressure=True, min_interval=3600.0, max_interval=3600.0)

    async with monitor:
        await asyncio.sleep(0.02)
        samples = monitor.statistics().samples
        await asyncio.to_thread(_write, fifo)
        async with asyncio.timeout(10):
            while monitor.statistics().samples == samples:  # noqa: ASYNC110  # a figure, which sets no event
                await asyncio.sleep(0.01)

    assert PressureSignal(fifo) in events
    assert monitor.statistics().pressure_signals == 1
    assert monitor.statistics().minor_collections == 1


def test_pressure_signal_wakes_the_thread(make, fifo, events):
    monitor = make(pressure=True, min_interval=3600.0, max_interval=3600.0)

    with monitor:
        deadline = time.monotonic() + 10
        while not monitor.statistics().pressure_signals and time.monotonic() < deadline:
            _write(fifo)

    assert PressureSignal(fifo) in events


async def test_idle_watch_does_not_spin_the_loop(make):
    monitor = make(pressure=True, min_interval=3600.0, max_interval=3600.0)
    async with monitor:
        await asyncio.sleep(0.02)
        loop = monitor._engine.loop
        fired = []
        loop._on_readable = lambda: fired.append(True)
        loop._add_reader()

        await asyncio.sleep(0.2)

    assert fired == []


def test_source_writes_the_kernel_trigger_of_200_ms(tmp_path):
    system = tmp_path / "memory"
    system.write_bytes(b"")

    source = open_source(None, environ={}, system=str(system))

    assert source is not None
    os.close(source.fd)
    assert system.read_bytes() == b"some 200000 2000000\0"


def test_source_is_none_when_the_manager_wants_none(tmp_path):
    assert open_source(None, environ={"MEMORY_PRESSURE_WATCH": "/dev/null"}) is None


def test_source_writes_what_the_manager_requests(tmp_path):
    file = tmp_path / "pressure"
    file.write_bytes(b"")

    source = open_source(None, environ={"MEMORY_PRESSURE_WATCH": str(file), "MEMORY_PRESSURE_WRITE": "aGVsbG8="})

    assert source is not None
    os.close(source.fd)
    assert file.read_bytes() == b"hello"


def test_source_prefers_the_limiting_cgroup_to_the_machine(tmp_path):
    (tmp_path / "memory.pressure").write_bytes(b"")
    level = LimitHeadroom(LimitSource.CGROUP2_MAX, str(tmp_path / "memory.max"), 0, 1000, 10, 0)

    source = open_source(Headroom(990, LimitSource.CGROUP2_MAX, (level,), None), environ={}, system="/nowhere")

    assert source is not None
    os.close(source.fd)
    assert source.path == str(tmp_path / "memory.pressure")


def test_file_that_cannot_be_polled_gives_no_watch(tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    monkeypatch.setenv("MEMORY_PRESSURE_WATCH", str(plain))

    assert open_watch(None) is None


def test_watch_without_a_free_descriptor_is_none(fifo, monkeypatch):
    def fail(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(select, "epoll", fail)

    assert open_watch(None) is None


def test_wake_ends_a_wait_and_does_nothing_after_close(fifo):
    watch = open_watch(None)
    assert isinstance(watch, PressureWatch)
    waker = threading.Timer(0.05, watch.wake)
    waker.start()

    assert watch.wait(30) is False

    waker.join()
    watch.close()
    watch.close()
    watch.wake()


def test_source_that_hung_up_is_not_polled_again(tmp_path):
    read, write = os.pipe()
    watch = PressureWatch(PressureSource("pipe", read, is_fifo=True))
    os.close(write)

    assert watch.wait(5) is False
    assert watch.wait(0.01) is False
    watch.close()
