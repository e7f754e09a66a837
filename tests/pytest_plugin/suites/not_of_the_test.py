"""Tests that leave nothing behind, while something else of the process does."""

import _thread
import asyncio
import concurrent.futures
import logging
import logging.handlers
import multiprocessing
import os
import queue
import socket
import sys
import threading
import time
from multiprocessing import shared_memory

import pytest

pytestmark = pytest.mark.no_leaked_tasks


def test_nothing_as_the_first_test():
    pass


def test_lock_that_starts_the_resource_tracker():
    with multiprocessing.get_context("spawn").Lock():
        pass


def test_block_of_shared_memory():
    block = shared_memory.SharedMemory(create=True, size=10)
    block.close()
    block.unlink()


def test_process_of_the_fork_server():
    process = multiprocessing.get_context("forkserver").Process(target=abs, args=(1,))
    process.start()
    process.join()
    process.close()


@pytest.fixture(scope="session")
def threads():
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture(scope="session")
def processes():
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="session")
def listener():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def test_first_work_of_an_older_thread_pool(threads):
    assert list(threads.map(abs, range(9))) == list(range(9))


def test_first_work_of_an_older_process_pool(processes):
    assert list(processes.map(abs, range(9))) == list(range(9))


def test_fixture_that_the_body_asks_for(request):
    assert request.getfixturevalue("listener")


def test_idle_worker_of_a_pool_in_a_module(tmp_path, monkeypatch):
    (tmp_path / "offloading.py").write_text("from concurrent.futures import ThreadPoolExecutor\npool = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    import offloading

    offloading.pool = concurrent.futures.ThreadPoolExecutor(1)
    offloading.pool.submit(int).result()


def test_import_that_opens_files(tmp_path, monkeypatch):
    (tmp_path / "opening.py").write_text(
        "import socket\n\nsource = open(__file__)\n\n\nclass Client:\n    shared = socket.socket()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import opening

    assert opening.Client.shared.fileno() > 0


queued: queue.Queue[logging.LogRecord] = queue.Queue()


def test_queue_listener_of_the_process():
    logging.getLogger("queued").addHandler(logging.handlers.QueueHandler(queued))
    logging.handlers.QueueListener(queued).start()


@pytest.fixture(scope="module")
def delayed_log(tmp_path_factory):
    handler = logging.FileHandler(tmp_path_factory.mktemp("logs") / "app.log", delay=True)
    logging.getLogger("delayed").addHandler(handler)
    yield
    handler.close()


def test_first_record_of_an_older_handler(delayed_log):
    logging.getLogger("delayed").warning("opens the file")


@pytest.fixture
def opened(tmp_path):
    with open(tmp_path / "before", "w") as file:
        yield file


def test_file_opened_before_is_renamed(opened, tmp_path):
    os.rename(tmp_path / "before", tmp_path / "after")


def test_file_opened_before_is_deleted(opened, tmp_path):
    os.unlink(tmp_path / "before")


@pytest.fixture
def rotating(tmp_path):
    handler = logging.handlers.RotatingFileHandler(tmp_path / "rotating.log", maxBytes=1, backupCount=1)
    logging.getLogger("rotating").addHandler(handler)
    yield
    handler.close()


def test_log_opened_before_is_rotated(rotating):
    logging.getLogger("rotating").warning("the first record opens the file")
    logging.getLogger("rotating").warning("the second one opens another file")


def test_foreign_thread_that_has_ended():
    done = threading.Event()

    def known_to_threading():
        threading.current_thread()
        done.set()

    _thread.start_new_thread(known_to_threading, ())
    done.wait()


def test_loop_of_its_own_with_its_executor():
    async def main():
        return await asyncio.to_thread(abs, -1)

    assert asyncio.run(main()) == 1


async def test_default_executor_of_the_loop():
    assert await asyncio.to_thread(abs, -1) == 1


async def test_lookup_of_a_host_name():
    assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)


@pytest.mark.asyncio(loop_scope="module")
async def test_worker_of_anyio_in_the_loop_of_the_module():
    to_thread = pytest.importorskip("anyio.to_thread")
    assert await to_thread.run_sync(abs, -1) == 1


async def test_subprocess_that_has_ended():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    assert await process.wait() == 0


async def test_abandoned_generator():
    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)

    async for _ in numbers():
        break


async def test_close_that_a_finalizer_schedules():
    class Client:
        async def close(self):
            await asyncio.sleep(0)

        def __del__(self):
            asyncio.get_running_loop().create_task(self.close())

    Client()


async def test_task_that_ends_soon():
    asyncio.create_task(asyncio.sleep(0.1))  # noqa: RUF006  # the test does not wait for it


async def test_task_that_ends_under_a_stopped_clock(monkeypatch):
    async def returns_at_once(*_):
        pass

    async def work():
        loop = asyncio.get_running_loop()
        for _ in range(10):
            turn = loop.create_future()
            loop.call_soon(turn.set_result, None)
            await turn

    monkeypatch.setattr(asyncio, "sleep", returns_at_once)
    monkeypatch.setattr(time, "sleep", lambda _: 1 / 0)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    asyncio.create_task(work())  # noqa: RUF006  # as above
