"""Services under the servers that run them: each request is answered, and charged with what it used.

The servers are real processes on a loopback port that the system has chosen; each gets a bounded number of requests,
and SIGTERM in the end.
"""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client

from memtools.ledger import choose_meter

PROGRAMS = Path(__file__).with_name("programs")
TIMEOUT_S = 60
CLIENTS = 4

# Servers print what is not wanted here: their own deprecations, which are none of these tests' matter.
TROUBLE = re.compile(r"Traceback|WORKER TIMEOUT|SIGSEGV|SIGABRT|was never awaited|Exception ignored|CRITICAL")

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="gunicorn and prefork do not run on Windows"),
]
needs_native = pytest.mark.skipif(choose_meter().name != "native", reason="only the native meter follows contexts")


@dataclass(frozen=True)
class Answer:
    """What a server has answered."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A process that serves, and what it has logged. Any: what the JSON of an answer contains."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path, environment: dict[str, str]) -> None:
        self.process = process
        self.folder = folder
        self.environment = environment
        self.address = ""

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.log):
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        pytest.fail(f"{pattern!r} is not in the log:\n{self.log}")

    def wait_until_it_listens(self) -> None:
        host, _, port = self.address.removeprefix("http://").partition(":")
        deadline = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
            except ConnectionRefusedError:
                time.sleep(0.02)  # uvicorn names the address before its workers listen
            else:
                return
        pytest.fail(f"{self.address} does not listen:\n{self.log}")

    def get(self, path: str) -> Answer:
        try:
            with urllib.request.urlopen(self.address + path, timeout=TIMEOUT_S) as answer:
                return Answer(answer.status, tuple(answer.headers.items()), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, tuple(error.headers.items()), error.read())

    def get_all(self, paths: list[str]) -> list[Answer]:
        with ThreadPoolExecutor(CLIENTS) as clients:
            return list(clients.map(self.get, paths))

    def watch_workers(self, workers: int) -> dict[int, dict[str, Any]]:
        """Ask until so many workers have answered; return what each says of its monitor when it is asked again.

        The first requests of a worker may all come while the first of them starts the thread of the monitor again.
        """
        seen: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + TIMEOUT_S
        while len(seen) < workers and time.monotonic() < deadline:
            seen |= self._watch()
        return seen | self._watch()

    def _watch(self) -> dict[int, dict[str, Any]]:
        return {answer.json["pid"]: answer.json for answer in self.get_all(["/watch"] * 2 * CLIENTS)}

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many workers have noted that they serve."""
        file = self.folder / "workers"
        deadline = time.monotonic() + TIMEOUT_S
        while not file.exists() or file.read_text().count('"serves"') < count:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

    def accounts(self) -> dict[str, list[dict[str, Any]]]:
        """Return what the workers of a service have written of their requests, by route."""
        found: dict[str, list[dict[str, Any]]] = {}
        for file in self.folder.glob("accounts-*"):
            for line in file.read_text().splitlines():
                account = json.loads(line)
                found.setdefault(account["name"], []).append(account)
        return found


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers, and end the process group of each server that still runs after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, ready: str, **variables: str) -> Server:
        folder = tmp_path / str(len(started))
        folder.mkdir(exist_ok=True)
        path = os.pathsep.join([str(PROGRAMS), *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        server = Server(process, folder, environment)
        found = server.wait_for(ready)
        if found.groups():
            server.address = found[1]
            server.wait_until_it_listens()
        return server

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:  # or the number of its group may be that of another one
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(TIMEOUT_S)


def _gunicorn(start: Start, application: str, *options: str, **variables: str) -> Server:
    words = ("gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--graceful-timeout", "10", *options, application)
    return start(*words, ready=r"Listening at: (http://127\.0\.0\.1:\d+)", **variables)


def _uvicorn(start: Start, application: str, *options: str, **variables: str) -> Server:
    words = ("uvicorn", application, "--host", "127.0.0.1", "--port", "0", *options)
    return start(*words, ready=r"Uvicorn running on (http://127\.0\.0\.1:\d+)", **variables)


def _sizes(count: int) -> list[int]:
    # Different ones, so that a request that is charged with the bytes of another one is found; large beside what the
    # first requests leave in the caches of a framework.
    return [3_000_000 + 100_000 * number for number in range(count)]


@needs_native
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--preload",),
        ("-k", "gthread", "--threads", "4"),
        ("-k", "gevent"),
        ("-k", "gevent", "--preload"),
    ],
    ids=" ".join,
)
def test_wsgi_service_under_gunicorn_charges_each_request(start: Start, options: tuple[str, ...]) -> None:
    server = _gunicorn(start, "wsgi_service:application", *options)
    sizes = _sizes(16) * 5

    watched = server.watch_workers(2)
    answers = server.get_all([f"/use/{size}" for size in sizes])
    stopped = server.get_all(["/stop"] * CLIENTS)
    code = server.stop()
    requests = sorted(server.accounts()["/use"], key=lambda account: account["retained"])

    assert {(worker["level"], worker["mode"]) for worker in watched.values()} == {("NORMAL", "thread")}
    assert len(watched) == 2
    assert {answer.status for answer in (*answers, *stopped)} == {200}
    for size, answer in zip(sizes, answers, strict=True):
        assert answer.json["peak"] == pytest.approx(size, rel=0.02), answer.json
        assert answer.json["retained"] == pytest.approx(size / 2, rel=0.02), answer.json
        assert answer.json["exact"], answer.json
    for answer in stopped:
        assert 8_000_000 < answer.json["stopped_at"] < 10_000_000
    halves = sorted(size / 2 for size in sizes)
    assert [account["retained"] for account in requests] == pytest.approx(halves, rel=0.02)
    assert all(account["exact"] for account in requests)
    assert code == 0
    assert not TROUBLE.search(server.log), server.log


ENDPOINTS = ("async", "plain", "gather", "background", "dependency", "stream", "stream-plain")


@needs_native
@pytest.mark.parametrize("worker", ["uvicorn", "uvicorn.workers.UvicornWorker", "uvicorn_worker.UvicornWorker"])
def test_asgi_service_under_workers_charges_each_request(start: Start, worker: str) -> None:
    if worker == "uvicorn":
        server = _uvicorn(start, "asgi_service:app", "--workers", "2")
    else:
        pytest.importorskip(worker.rpartition(".")[0])
        server = _gunicorn(start, "asgi_service:app", "-k", worker)
    sizes = _sizes(16)

    watched = server.watch_workers(2)
    answers = server.get_all([f"/{name}/{size}" for size in sizes for name in ENDPOINTS])
    stopped = server.get_all(["/limit/100000000"] * CLIENTS)
    code = server.stop()
    accounts = server.accounts()

    assert {(worker["level"], worker["mode"]) for worker in watched.values()} == {("NORMAL", "task")}
    assert len(watched) == 2
    assert {answer.status for answer in answers} == {200}
    for name in ENDPOINTS:
        requests = sorted(accounts[f"/{name}/{{size}}"], key=lambda account: account["retained"])
        assert [account["retained"] for account in requests] == pytest.approx(sizes, rel=0.02), name
        assert all(account["exact"] for account in requests), name
    assert {answer.status for answer in stopped} == {500}
    assert all(24_000_000 < account["peak"] < 27_000_000 for account in accounts["/limit/{size}"])
    assert len(accounts["/limit/{size}"]) == CLIENTS
    assert code == 0


VISITS: tuple[tuple[str, str, dict[str, str]], ...] = (
    *(("GET", f"/{name}/{size}", {}) for name in ENDPOINTS for size in (0, 40_000)),
    ("GET", "/async/400", {"accept-encoding": "identity"}),
    ("GET", "/async/many", {}),
    ("HEAD", "/async/400", {}),
    ("POST", "/async/400", {}),
    ("GET", "/async/400", {"origin": "http://elsewhere"}),
    ("OPTIONS", "/async/400", {"origin": "http://elsewhere", "access-control-request-method": "GET"}),
    ("GET", "/nowhere", {}),
    ("GET", "/denied", {}),
    ("GET", "/fails", {}),
)


def _visit(client: httpx.Client) -> list[object]:
    seen: list[object] = []
    outside = f"/outside/{len({(method, path) for method, path, _ in VISITS})}"
    for method, path, headers in (*VISITS, ("GET", outside, {})):
        answer = client.request(method, path, headers=headers)
        kept = [header for header in answer.headers.multi_items() if header[0] != "date"]
        seen.append((method, path, answer.status_code, kept, answer.content))
    return seen


def test_answers_under_uvicorn_are_those_without_memtools(start: Start) -> None:
    seen: list[list[object]] = []
    for is_plain in "10":
        server = _uvicorn(start, "asgi_service:app", PLAIN=is_plain)
        with httpx.Client(base_url=server.address, timeout=TIMEOUT_S) as client:
            answers = _visit(client)
        with websockets.sync.client.connect(server.address.replace("http", "ws") + "/echo") as socket:
            for text in ("a", "b" * 100_000):
                socket.send(text)
            echoes = [socket.recv(TIMEOUT_S) for _ in range(2)]
        code = server.stop()
        # In any order: the access log and the log of connections are written by callbacks that may change places.
        lines = sorted(re.sub(r"\d+", "N", line) for line in server.log.splitlines())
        seen.append([*answers, *echoes, code, *lines])

    assert [pair for pair in zip(*seen, strict=True) if pair[0] != pair[1]] == []
    assert -signal.SIGTERM in seen[0]  # as uvicorn ends


@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient` is deprecated")
def test_answers_of_a_test_client_are_those_without_memtools(monkeypatch, tmp_path: Path) -> None:
    from starlette.testclient import TestClient  # warns of httpx where httpx2 is not installed

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PROGRAMS)
    seen: list[object] = []
    for is_plain in "10":
        monkeypatch.setenv("PLAIN", is_plain)
        app = runpy.run_path(str(PROGRAMS / "asgi_service.py"))["app"]
        with TestClient(app) as client:
            answers = _visit(client)
            with client.websocket_connect("/echo") as socket:
                socket.send_text("a")
                echo = socket.receive_text()
        seen.append((answers, echo))

    assert seen[1] == seen[0]


@needs_native
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_celery_worker_charges_each_task(start: Start, tmp_path: Path, pool: str) -> None:
    folder = tmp_path / "0"
    for name in ("queue", "results", "control"):
        (folder / name).mkdir(parents=True)
    worker = ("worker", "--pool", pool, "--concurrency", "2", "--loglevel=INFO", "--without-gossip", "--without-mingle")
    server = start("celery", "-A", "celery_service", *worker, ready=r" ready\.")
    sizes = _sizes(16)

    sent = subprocess.run(
        [sys.executable, "-m", "celery_service", json.dumps(sizes)],
        cwd=folder,
        env={**server.environment, "SENDS": "1"},
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr.decode() + server.log
    used, stopped = json.loads(sent.stdout)
    code = server.stop()

    for size, (retained, peak, is_exact, _) in zip(sizes, used, strict=True):
        assert peak == pytest.approx(size, rel=0.02)
        assert retained == pytest.approx(size / 2, rel=0.02)
        assert is_exact
    watched = {tuple(result[3]) for result in used}
    assert {(level, mode) for _, level, mode in watched} == {("NORMAL", "thread")}
    assert (server.process.pid in {pid for pid, _, _ in watched}) == (pool == "gevent")
    assert all(8_000_000 < at < 10_000_000 for at in stopped)
    assert code == 0
    assert not TROUBLE.search(server.log), server.log


def _ask_for(server: Server, path: str, requests: int, rate: int) -> dict[str, Any]:
    """Send requests by a process of its own, over connections that are kept; return what came of them."""
    words = [str(PROGRAMS / "load.py"), server.address, path, str(requests), "8", str(rate)]
    done = subprocess.run([sys.executable, *words], capture_output=True, timeout=TIMEOUT_S, check=True)
    return json.loads(done.stdout)


def _fewest_serving(server: Server, workers: int) -> tuple[int, int]:
    """Return how many workers served at the same time, at least, and how many were replaced."""
    lines = (server.folder / "workers").read_text().splitlines()
    events = sorted((json.loads(line) for line in lines), key=lambda event: event["at"])
    serving, fewest = 0, workers
    for event in events:
        serving += 1 if event["event"] == "serves" else -1
        if event["event"] != "serves":
            fewest = min(fewest, serving)
    return fewest, sum(event["event"] == "leaves" for event in events)


@pytest.mark.parametrize(
    "kind", ["sync", "gthread --threads 4 --preload", "gevent", "uvicorn_worker.UvicornWorker", "uvicorn"]
)
def test_recycled_workers_fail_no_request(start: Start, kind: str) -> None:
    configuration = ("--config", "python:recycled_service")
    if kind == "uvicorn":
        options = ("--workers", "2", "--no-access-log", "--timeout-worker-healthcheck", "1")
        server = _uvicorn(start, "recycled_service:recycled_asgi", *options, GROWTH="10 MiB")
    else:
        application = "recycled_service:asgi" if "uvicorn" in kind else "recycled_service:wsgi"
        options = ("-k", *kind.split(), *configuration)
        server = _gunicorn(start, application, *options, GROWTH="10 MiB")
    server.wait_for_workers(2)

    seen = []
    deadline = time.monotonic() + TIMEOUT_S
    while _fewest_serving(server, 2)[1] < 2 and time.monotonic() < deadline:
        seen.append(_ask_for(server, "/leak", 100, 120))
    server.wait_for_workers(2 + _fewest_serving(server, 2)[1])
    fewest, replaced = _fewest_serving(server, 2)
    code = server.stop()
    reasons = re.findall(r"after (\d+) requests; largest owners: /leak ([\d.]+) MiB", server.log)

    assert [part["errors"] for part in seen] == [{}] * len(seen)
    assert {sum(part["answers"].values()) for part in seen} == {100}
    assert replaced >= 2
    assert fewest == 1
    assert len(reasons) >= replaced
    # As many requests run at once as there are clients, and those have not ended.
    assert [float(size) for _, size in reasons] == pytest.approx([int(count) for count, _ in reasons], rel=0.02, abs=8)
    assert code == 0
    assert not TROUBLE.search(server.log), server.log


def test_worker_that_does_not_end_is_asked_again(start: Start) -> None:
    options = ("-k", "gthread", "--threads", "2", "--config", "python:recycled_service")
    server = _gunicorn(start, "recycled_service:wsgi", *options, GROWTH="10 MiB", DEAF="1")
    server.wait_for_workers(2)

    seen = _ask_for(server, "/leak", 100, 120)
    server.wait_for(r"\[WARNING\] worker \d+ was to end 0 s ago: it is asked again")
    server.wait_for_workers(3)

    assert seen["errors"] == {}
    assert (server.folder / "workers").read_text().count('"was asked"') >= 2


def test_celery_process_is_recycled_and_loses_no_task(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "0"
    for name in ("queue", "results", "control"):
        (folder / name).mkdir(parents=True)
    path = os.pathsep.join([str(PROGRAMS), *filter(None, sys.path)])
    # All of them before the worker starts: kombu may read a message while it is written into its file.
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "celery_recycled", "120"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        timeout=TIMEOUT_S,
        check=True,
    )
    worker = ("worker", "--pool", "prefork", "--concurrency", "2", "--loglevel=INFO", "--without-gossip")
    server = start("celery", "-A", "celery_recycled", *worker, "--without-mingle", ready=r" ready\.")

    deadline = time.monotonic() + TIMEOUT_S
    while len(runs := _runs(folder)) < 120 and time.monotonic() < deadline:
        time.sleep(0.1)
    failed = server.wait_for(r"Task celery_recycled\.exceed\[.*raised unexpected: (\w+)")
    code = server.stop()
    reasons = re.findall(r"worker (\d+) is to be replaced: .* largest owners: celery_recycled\.leak", server.log)

    assert sorted(run["number"] for run in runs) == list(range(120))
    assert {run["owner"] for run in runs} == {"celery_recycled.leak"}
    assert {tuple(run["modes"]) for run in runs} == {("thread",)}
    for calls, retained in (run["left"] for run in runs if run["left"][0]):
        assert retained == pytest.approx(calls * 2**20, rel=0.02)
    assert len(reasons) >= 2
    assert len(set(reasons)) == len(reasons)
    assert failed[1] == "BudgetExceeded"
    assert code == 0
    assert "CRITICAL" not in server.log


def _runs(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
