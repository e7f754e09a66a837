"""Pressure: which file is watched, what wakes, what is left open. A FIFO stands for the kernel."""

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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when memory is short")


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


async def test_a_signal_wakes_the_task_and_is_told_with_its_source(make, fifo, heard):
    monitor = make(pressure=True, min_interval=3600.0, max_interval=3600.0)

    async with monitor:
        await asyncio.sleep(0.02)
        looks = monitor.statistics().samples
        await asyncio.to_thread(_write, fifo)
        async with asyncio.timeout(10):
            while monitor.statistics().samples == looks:  # noqa: ASYNC110  # a figure, which sets no event
                await asyncio.sleep(0.01)

    assert PressureSignal(fifo) in heard
    assert monitor.statistics().pressure_signals == 1
    assert monitor.statistics().minor_collections == 1


def test_a_signal_wakes_the_thread(make, fifo, heard):
    monitor = make(pressure=True, min_interval=3600.0, max_interval=3600.0)

    with monitor:
        deadline = time.monotonic() + 10
        while not monitor.statistics().pressure_signals and time.monotonic() < deadline:
            _write(fifo)

    assert PressureSignal(fifo) in heard


async def test_an_idle_watch_does_not_spin_the_loop(make):
    monitor = make(pressure=True, min_interval=3600.0, max_interval=3600.0)
    async with monitor:
        await asyncio.sleep(0.02)
        beat = monitor._keeper.beat_of
        fired = []
        beat._feel = lambda: fired.append(True)
        beat._listen()

        await asyncio.sleep(0.2)

    assert fired == []


def test_the_kernel_is_asked_to_tell_of_two_hundred_milliseconds(tmp_path):
    system = tmp_path / "memory"
    system.write_bytes(b"")

    source = open_source(None, environ={}, system=str(system))

    assert source is not None
    os.close(source.fd)
    assert system.read_bytes() == b"some 200000 2000000\0"


def test_a_manager_that_wants_no_watch_gets_none(tmp_path):
    assert open_source(None, environ={"MEMORY_PRESSURE_WATCH": "/dev/null"}) is None


def test_what_the_manager_wants_written_is_written(tmp_path):
    told = tmp_path / "told"
    told.write_bytes(b"")

    source = open_source(None, environ={"MEMORY_PRESSURE_WATCH": str(told), "MEMORY_PRESSURE_WRITE": "aGVsbG8="})

    assert source is not None
    os.close(source.fd)
    assert told.read_bytes() == b"hello"


def test_the_cgroup_that_limits_us_comes_before_the_machine(tmp_path):
    (tmp_path / "memory.pressure").write_bytes(b"")
    room = LimitHeadroom(LimitSource.CGROUP2_MAX, str(tmp_path / "memory.max"), 0, 1000, 10, 0)

    source = open_source(Headroom(990, LimitSource.CGROUP2_MAX, (room,), None), environ={}, system="/nowhere")

    assert source is not None
    os.close(source.fd)
    assert source.path == str(tmp_path / "memory.pressure")


def test_a_file_that_cannot_be_polled_is_closed_and_watched_by_nobody(tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    monkeypatch.setenv("MEMORY_PRESSURE_WATCH", str(plain))

    assert open_watch(None) is None


def test_without_a_descriptor_there_is_no_watch_and_nothing_stays_open(fifo, monkeypatch):
    def refuses(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(select, "epoll", refuses)

    assert open_watch(None) is None


def test_a_bell_ends_the_wait_of_another_thread_and_is_silent_after_closing(fifo):
    watch = open_watch(None)
    assert isinstance(watch, PressureWatch)
    ringer = threading.Timer(0.05, watch.ring)
    ringer.start()

    assert watch.wait(30) is False

    ringer.join()
    watch.close()
    watch.close()
    watch.ring()


def test_a_source_that_hung_up_is_asked_no_more(tmp_path):
    read, write = os.pipe()
    watch = PressureWatch(PressureSource("pipe", read, has_content=True))
    os.close(write)

    assert watch.wait(5) is False
    assert watch.wait(0.01) is False
    watch.close()
