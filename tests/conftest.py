"""Guard every test: what it starts, it ends.

A thread, a task of the test's own loop, a file descriptor (Linux), a tracemalloc session, an open scope or a
subscription that is left behind fails the test, by name. A test that has to leave something says so and why:
`@pytest.mark.leaves("thread", reason="the interpreter keeps its resource tracker")`.
"""

import asyncio
import gc
import inspect
import os
import sys
import sysconfig
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from memtools import events
from memtools.errors import ConfigError
from memtools.ledger import _threads as _ledger_threads
from memtools.ledger import open_owners
from memtools.readings import trim_heap

_IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

# Things end a moment after the call that ends them: a thread between its last statement and its removal, say.
_TIMEOUT_S = 10.0

# Opened on first use and kept open on purpose, by memtools.readings and by the standard library.
_KEPT_FILES = ("/proc/", "/sys/fs/cgroup/", "/dev/urandom", "/dev/null")


def _threads() -> dict[object, str]:
    return {thread: repr(thread) for thread in threading.enumerate()}


def _descriptors() -> dict[object, str]:
    if sys.platform != "linux":
        return {}

    found: dict[object, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor with which the folder was listed
        if not target.startswith(_KEPT_FILES) and int(name) != _resource_tracker_descriptor():
            found[name, target] = f"{name} -> {target}"
    return found


def _resource_tracker_descriptor() -> int | None:
    # multiprocessing starts one tracker per process, at the first child or shared block, and never ends it.
    module = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else module._resource_tracker._fd


def _tracemalloc_sessions() -> dict[object, str]:
    return {"session": "tracemalloc is tracing"} if tracemalloc.is_tracing() else {}


def _subscriptions() -> dict[object, str]:
    return {listener: repr(listener) for listener in events._dispatcher.subscriptions}


def _scopes() -> dict[object, str]:
    return {owner: repr(owner) for owner in open_owners()}


_GUARDS: dict[str, Callable[[], dict[object, str]]] = {
    "thread": _threads,
    "descriptor": _descriptors,
    "tracemalloc": _tracemalloc_sessions,
    "subscription": _subscriptions,
    "scope": _scopes,
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skip a test that names the native meter where there is none by design: on free-threaded builds."""
    try:
        yield
    except ConfigError as error:
        if _IS_FREE_THREADED and (error.name, error.value) == ("meter", "native"):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True, scope="session")
def threads_of_pytest() -> None:
    """Tell the ledger of the threads that pytest's plugins keep waiting: without a GIL, any thread raises doubts."""
    _ledger_threads.IDLE_THREADS = threading.active_count() - 1


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves something behind. Set up first, so that it looks after all other fixtures."""
    exempt = _exemptions(request.node)
    before = {what: look() for what, look in _GUARDS.items() if what not in exempt}

    yield

    leftovers = _wait_for_the_rest(before)
    if leftovers:
        pytest.fail("left behind: " + "; ".join(leftovers), pytrace=False)


@pytest.fixture(autouse=True)
def loop_left_empty(nothing_left_behind: None, request: pytest.FixtureRequest) -> None:
    """Check the loop of a coroutine test; a plain test gets no loop for it."""
    if _is_coroutine_test(request) and "task" not in _exemptions(request.node):
        request.getfixturevalue("no_task_left_behind")


@pytest.fixture
async def no_task_left_behind() -> AsyncIterator[None]:
    """Fail the test whose tasks outlive it; checked inside its loop, which would cancel them silently."""
    before = asyncio.all_tasks()

    yield

    # A task that was cancelled, or whose work is done, needs a few turns to end.
    for _ in range(10):
        if not _new_tasks(before):
            return
        await asyncio.sleep(0)
    leftovers = sorted(task.get_name() for task in _new_tasks(before))
    if leftovers:
        pytest.fail(f"left behind: task {', '.join(leftovers)}", pytrace=False)


def _new_tasks(before: set[asyncio.Task[object]]) -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - before - {asyncio.current_task()}


def _wait_for_the_rest(before: dict[str, dict[object, str]]) -> list[str]:
    deadline = time.monotonic() + _TIMEOUT_S
    while leftovers := _compare(before):
        if time.monotonic() > deadline:
            break
        gc.collect()  # a descriptor or a thread may hang on a cycle
        time.sleep(0.01)
    return leftovers


def _compare(before: dict[str, dict[object, str]]) -> list[str]:
    leftovers: list[str] = []
    for what, known in before.items():
        now = _GUARDS[what]()
        leftovers += [f"{what} {shown}" for thing, shown in now.items() if thing not in known]
    return leftovers


def _exemptions(node: pytest.Item) -> set[str]:
    exempt: set[str] = set()
    for marker in node.iter_markers("leaves"):
        what = marker.args[0] if marker.args else None
        if what not in {*_GUARDS, "task"} or not marker.kwargs.get("reason"):
            pytest.fail(f"leaves({what!r}) needs one of {sorted(_GUARDS)} or 'task', and a reason=", pytrace=False)
        exempt.add(what)
    return exempt


def _is_coroutine_test(request: pytest.FixtureRequest) -> bool:
    function = getattr(request.node, "obj", None)
    function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    return inspect.iscoroutinefunction(function)


@pytest.fixture
def trimmed_heap() -> None:
    """Return free heap memory to the system: an allocation that reuses it would not grow the resident memory."""
    gc.collect()
    trim_heap()
