"""Runs of coroutines that callers share, in a process that forks: the same for each cache that has them."""

import asyncio
import os
import threading
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from memtools import bounded_cache
from memtools.structures import WeakCache

TIMEOUT_S = 30.0


async def one() -> int:
    await asyncio.sleep(0)
    return 1


def weak_cache() -> tuple[Any, Callable[[], Awaitable[int]]]:
    cache: WeakCache[str, int] = WeakCache()
    return cache, lambda: cache.aget_or_create("key", one)


def cached_function() -> tuple[Any, Callable[[], Awaitable[int]]]:
    function = bounded_cache(one)
    info: Any = function.cache_info
    return info.__self__, function


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("make", [weak_cache, cached_function])
def test_child_of_a_fork_under_the_lock_runs_coroutines(make: Callable[[], Any]) -> None:
    cache, ask = make()
    calls, table, call = cache._calls, {"key": 1}, 1  # a call that has begun before the fork
    holds, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._lock:
            holds.set()
            leave.wait(TIMEOUT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(TIMEOUT_S)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the subject
        child = os.fork()
    if child == 0:
        outcome = 1
        try:
            threading.Timer(TIMEOUT_S, os._exit, (2,)).start()  # instead of waiting for the lock for ever
            calls.discard("key", table, call)
            outcome = 0 if asyncio.run(ask()) == 1 and not table else 1
        finally:
            os._exit(outcome)
    _, status = os.waitpid(child, 0)
    leave.set()
    thread.join(TIMEOUT_S)

    assert os.waitstatus_to_exitcode(status) == 0
