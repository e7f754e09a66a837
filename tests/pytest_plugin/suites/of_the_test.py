"""Tests that leave something behind that looks like what the process keeps."""

import asyncio
import concurrent.futures
import logging
import threading

import pytest

pytestmark = pytest.mark.no_leaked_tasks

kept = []
pool = None


def test_pool_of_its_own():
    kept.append(concurrent.futures.ThreadPoolExecutor(1))
    kept[-1].submit(int).result()


def test_pool_in_a_global_of_its_module():
    global pool
    pool = concurrent.futures.ThreadPoolExecutor(1, "in a global")
    pool.submit(int).result()


async def test_busy_worker_of_the_default_executor():
    kept.append(threading.Event())
    asyncio.get_running_loop().run_in_executor(None, kept[-1].wait, 3)  # the loop joins it at its end


def test_open_loop():
    kept.append(asyncio.new_event_loop())


def test_handler_of_its_own(tmp_path):
    logging.getLogger("own").addHandler(logging.FileHandler(tmp_path / "own.log"))


class Client:
    def connect(self):
        kept.append(asyncio.create_task(self.run(), name="feed"))

    async def run(self):
        await asyncio.Event().wait()


async def test_waiting_task():
    Client().connect()
    await asyncio.sleep(0)


async def test_generator_that_never_closes():
    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.Event().wait()

    async for _ in numbers():
        break


def test_release():
    for one in kept:
        if isinstance(one, threading.Event):
            one.set()
