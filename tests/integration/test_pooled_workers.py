"""Workers of one server in one pool, by one setting: none has to know of it, and together they keep to the budget.

The servers are real processes on a loopback port that the system has chosen.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from memtools.cluster import CarrierError, Node
from memtools.cluster._carrier import PoolFigures
from memtools.cluster._cluster import look
from memtools.readings import Level

PROGRAMS = Path(__file__).with_name("programs")
TIMEOUT_S = 60
WORKERS = 3
MIB = 2**20
BUDGET = 4096 * MIB
BLOCK = 1650 * MIB  # two fit into the budget, and one while a process is critical

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="gunicorn and prefork do not run on Windows"),
]


class Service:
    """A server with its workers, which share the pool of `url`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/memory.db?pool=shop&budget={BUDGET}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROGRAMS), *filter(None, sys.path)]),
            "FOLDER": str(folder),
            "MEMTOOLS_CLUSTER": self.url,
        }
        self.clients = ThreadPoolExecutor(3 * WORKERS)
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self, *words: str) -> None:
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        if words[0] != "celery":
            found = self.wait_for(
                lambda: re.search(r"(?:Listening at|running on):? (http://127\.0\.0\.1:\d+)", self.log)
            )
            self.address = found[1]

    def send(self, path: str, count: int = 1) -> "list[Future[Any]]":
        """Send requests or tasks, without waiting for their end."""
        if self.address:
            return [self.clients.submit(self._ask, path) for _ in range(count)]
        words = [sys.executable, "-W", "ignore", "-m", "pooled_tasks", path, str(count)]
        subprocess.run(words, cwd=self.folder, env=self.environment, timeout=TIMEOUT_S, check=True)
        return []

    def run_blocks(self, count: int) -> int:
        """Run blocks of work to their end; return how many bytes were leased at most at one time."""
        before = len(self.blocks())
        for future in self.send(f"/hold/{BLOCK}/0.06", count):
            future.result(TIMEOUT_S)
        self.wait_for(lambda: len(self.blocks()) == before + 2 * count and not self.look()[0].leased_bytes)
        held = most = 0
        for block in self.blocks()[before:]:
            held += block["change"]
            most = max(most, held)
        return most

    def most_leased(self, expected: int) -> int:
        """Run blocks until so much was leased at one time, or more; one worker may accept all requests for a while."""
        most = 0
        for _ in range(10):
            most = max(most, self.run_blocks(3 * WORKERS))
            if most >= expected:
                break
        return most

    def blocks(self) -> list[dict[str, Any]]:
        file = self.folder / "blocks"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return sorted(found, key=lambda block: block["at"])

    def look(self) -> tuple[PoolFigures, tuple[Node, ...]]:
        return look(self.url)

    def wait_for_nodes(self, fits: Callable[[Node], bool], count: int) -> set[int]:
        """Wait until so many processes of the pool are so, and no more; return their ids."""

        def found() -> set[int] | None:
            with suppress(CarrierError):  # the pool is not there before the first of them
                pids = {node.pid for node in self.look()[1] if fits(node)}
                return pids if len(pids) == count else None
            return None

        return self.wait_for(found)

    def wait_for(self, found: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            if value := found():
                return value
            time.sleep(0.02)
        pytest.fail(f"it did not come to pass:\n{self.log}")

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(TIMEOUT_S)
        self.clients.shutdown()

    def _ask(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=TIMEOUT_S) as answer:
            return answer.read()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    for name in ("queue", "results", "control"):
        (tmp_path / name).mkdir()
    made = Service(tmp_path)
    yield made
    made.close()


GUNICORN = ("gunicorn", "--bind", "127.0.0.1:0", "--workers", str(WORKERS), "--config", "python:pooled_service")
SERVERS = {
    "gunicorn sync": (*GUNICORN, "pooled_service:wsgi"),
    "gunicorn gevent": (*GUNICORN, "-k", "gevent", "pooled_service:wsgi"),
    "gunicorn uvicorn": (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "pooled_service:asgi"),
    "uvicorn": (
        "uvicorn", "--host", "127.0.0.1", "--port", "0", "--workers", str(WORKERS),
        "--timeout-worker-healthcheck", "1", "pooled_service:asgi",
    ),
    "celery": (
        "celery", "-A", "pooled_tasks", "worker", "--concurrency", str(WORKERS), "--loglevel=INFO",
        "--without-gossip", "--without-mingle",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SERVERS)
def test_workers_share_one_budget_by_one_setting(service: Service, kind: str) -> None:
    service.start(*SERVERS[kind])
    workers = service.wait_for_nodes(lambda node: True, WORKERS)

    # None of them has more than the pool allows, and a killed one leaves nothing behind.
    assert service.most_leased(2 * BLOCK) == 2 * BLOCK
    service.send(f"/hold/{BLOCK}/600")
    (killed,) = service.wait_for_nodes(lambda node: node.leased_bytes == BLOCK, 1)
    os.kill(killed, signal.SIGKILL)
    service.wait_for(lambda: service.look()[0].leased_bytes == 0)
    after = service.wait_for_nodes(lambda node: node.pid != killed, WORKERS)
    assert service.most_leased(2 * BLOCK) == 2 * BLOCK

    # One that is critical lowers what the others may have.
    service.send("/grow")
    service.wait_for_nodes(lambda node: node.level is Level.CRITICAL, 1)
    lowered = service.look()[0].usable_bytes
    assert service.most_leased(BLOCK) == BLOCK
    code = service.stop()

    assert lowered == BUDGET * 80 // 100
    assert len(after - workers) == 1
    assert service.process is not None
    assert service.process.pid not in workers | after
    assert service.look()[1] == ()
    assert code == 0
    assert "memtools/" not in service.log  # Celery logs tracebacks of its own, of the process that was killed
