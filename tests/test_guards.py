"""The guards of this suite catch what they say they catch: run on a small suite of culprits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CULPRITS = """
import asyncio, os, threading, tracemalloc
import pytest
from memtools.events import subscribe
from memtools.scopes import memory_scope

kept = []

def test_leaves_a_thread():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="culprit-thread")
    thread.start()
    kept.append(release)

@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are listed on Linux only")
def test_leaves_a_descriptor():
    kept.append(os.open(__file__, os.O_RDONLY))

def test_leaves_a_tracemalloc_session():
    tracemalloc.start()

def test_leaves_a_scope():
    kept.append(memory_scope("culprit-scope").__enter__())

def test_leaves_a_subscription():
    kept.append(subscribe(print))

async def test_leaves_a_task():
    kept.append(asyncio.create_task(asyncio.sleep(3600), name="culprit-task"))

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
    class Node: pass
    node = Node()
    node.itself, node.descriptor = node, open(tmp_path / "x", "w", buffering=1)
    node.descriptor.close()

def test_release():
    tracemalloc.stop()
    for one in reversed(kept):
        if isinstance(one, threading.Event): one.set()
        if isinstance(one, memory_scope): one.__exit__(None, None, None)
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest prints about the culprits, each on a line of its own."""
    suite = tmp_path_factory.mktemp("culprits")
    guards = Path(__file__).with_name("conftest.py").read_text()
    (suite / "conftest.py").write_text(guards.replace("_PATIENCE_S = 2.0", "_PATIENCE_S = 0.2"))
    (suite / "test_culprits.py").write_text(CULPRITS)
    (suite / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nmarkers = leaves(what, reason): excused\n")

    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rEpf", "--tb=short", str(suite)]
    environment = {**os.environ, "COLUMNS": "400", "PYTEST_ADDOPTS": ""}  # the summary cuts its lines at the width
    result = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, timeout=120)
    return result.stdout


@pytest.mark.parametrize(
    ("test", "what"),
    [
        ("test_leaves_a_thread", "left behind: thread <Thread(culprit-thread"),
        ("test_leaves_a_tracemalloc_session", "left behind: tracemalloc"),
        ("test_leaves_a_scope", "left behind: scope"),
        ("test_leaves_a_scope", "culprit-scope"),
        ("test_leaves_a_subscription", "left behind: subscription Subscription(print)"),
        ("test_leaves_a_task", "left behind: task culprit-task"),
        ("test_gives_no_reason", "needs one of"),
    ],
)
def test_a_guard_names_the_culprit_and_what_it_left(verdicts: str, test: str, what: str) -> None:
    assert [line for line in verdicts.splitlines() if line.startswith("ERROR") and test in line and what in line]


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are listed on Linux only")
def test_a_guard_names_the_descriptor_that_was_left(verdicts: str) -> None:
    assert "test_leaves_a_descriptor - Failed: left behind: descriptor" in verdicts


@pytest.mark.parametrize("test", ["test_excused", "test_innocent"])
def test_a_guard_leaves_the_innocent_and_the_excused_alone(verdicts: str, test: str) -> None:
    summary = [
        line for line in verdicts.splitlines() if test in line and line.startswith(("ERROR", "FAILED", "PASSED"))
    ]

    assert summary
    assert all(line.startswith("PASSED") for line in summary)
