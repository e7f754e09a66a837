"""A suite whose tests leave things behind, each of one kind; run by the tests of the guards."""

import asyncio
import os
import threading
import tracemalloc

import pytest

from memtools.events import subscribe
from memtools.scopes import memory_scope

kept = []


def test_leaves_a_thread():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="left-thread")
    thread.start()
    kept.append(release)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are listed on Linux only")
def test_leaves_a_descriptor():
    kept.append(os.open(__file__, os.O_RDONLY))


def test_leaves_a_tracemalloc_session():
    tracemalloc.start()


def test_leaves_a_scope():
    kept.append(memory_scope("left-scope").__enter__())


def test_leaves_a_subscription():
    kept.append(subscribe(print))


async def test_leaves_a_task():
    kept.append(asyncio.create_task(asyncio.sleep(3600), name="left-task"))


@pytest.mark.leaves("thread", reason="")
def test_gives_no_reason():
    pass


@pytest.mark.leaves("thread", reason="the guard is what is tested")
def test_excused_thread():
    release = threading.Event()
    threading.Thread(target=release.wait).start()
    kept.append(release)


async def test_innocent_task_and_thread():
    await asyncio.create_task(asyncio.to_thread(sum, [1]))


async def test_innocent_cancelled_task():
    asyncio.create_task(asyncio.sleep(3600)).cancel()


def test_innocent_file_in_a_cycle(tmp_path):
    class Node:
        pass

    node = Node()
    node.itself, node.descriptor = node, (tmp_path / "x").open("w", buffering=1)
    node.descriptor.close()


def test_release():
    tracemalloc.stop()
    for one in reversed(kept):
        if isinstance(one, threading.Event):
            one.set()
        if isinstance(one, memory_scope):
            one.__exit__(None, None, None)
