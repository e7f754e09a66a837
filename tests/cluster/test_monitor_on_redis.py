"""A monitor in a pool on a real Redis, by one setting: its work goes on whatever the server does."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from memtools import MemoryMonitor
from memtools.cluster import CarrierError
from memtools.cluster import _shared as shared_module
from memtools.cluster._cluster import look
from memtools.errors import ConfigError

GIB = 2**30
EVER: dict[str, Any] = {"warning": 10**15, "critical": 10**15 + 1}


def _is_member(url: str) -> bool:
    try:
        return [node.pid for node in look(url)[1]] == [os.getpid()]
    except CarrierError:
        return False


def _wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_worker_starts_and_works_without_a_server(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{redis_server.url}?pool=shop&budget=100GiB"
    monkeypatch.setenv("MEMTOOLS_CLUSTER", url)
    monkeypatch.setattr(shared_module, "_RETRY_S", 0.05)
    redis_server.stop()

    with MemoryMonitor(**EVER) as monitor:
        with monitor.admit(GIB):
            redis_server.start()
        _wait_for(lambda: _is_member(url))
        _wait_for(lambda: monitor._pool.lease(1) is not None)
        with monitor.admit(GIB):
            leased = look(url)[0].leased_bytes
        redis_server.freeze()
        with monitor.admit(GIB):  # by itself, up to its share
            redis_server.thaw()

    assert leased == GIB
    assert not _is_member(url)


@pytest.mark.parametrize("query", ["", "?budget=80%"])
def test_share_of_one_limit_is_refused_for_many(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTOOLS_CLUSTER", f"redis://user:s3cret@localhost/0{query}")

    with pytest.raises(ConfigError, match=r"MEMTOOLS_CLUSTER='redis://\*\*\*@localhost/0.* a limit") as caught:
        MemoryMonitor()

    assert "s3cret" not in str(caught.value)
