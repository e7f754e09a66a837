"""Processes that end because memory is exhausted: what runs before the end, and what their supervisor sees."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process of Windows at once"),
]

PROGRAMS = Path(__file__).with_name("programs")
PROGRAM = PROGRAMS / "exhausted_program.py"
Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start the program; it is killed at the end of the test, should it be alive."""
    processes: list[subprocess.Popen[str]] = []

    def start(kind: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), kind, str(tmp_path / "report-{pid}")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_script_ends_with_its_code_and_runs_finally(run: Run, tmp_path: Path) -> None:
    process = run("script")
    output, log = process.communicate(timeout=30)

    assert process.returncode == 75, log
    assert output.split() == ["finally", "atexit"]
    assert "CRITICAL monitor: memory is CRITICAL: 900.0 MiB of 1000.0 MiB (90%); nothing has helped for" in log
    assert "the process ends: no more work is admitted, and it exits with 75 within 8 s" in log
    report = (tmp_path / f"report-{process.pid}").read_text("utf-8")
    assert "monitor: CRITICAL for" in report
    assert "what to change:" in report
    assert report.strip() in log


def test_asyncio_program_ends_with_its_code_and_runs_finally(run: Run) -> None:
    process = run("asyncio")
    output, log = process.communicate(timeout=30)

    assert (process.returncode, output.split()) == (75, ["finally"]), log


def test_admitted_block_ends_and_the_next_one_is_refused(run: Run) -> None:
    process = run("drain")
    output, log = process.communicate(timeout=30)

    assert process.returncode == 75, log
    assert output.split() == ["refused", "drained", "finally", "atexit"]


def test_program_that_ignores_sigterm_ends_after_the_grace(run: Run) -> None:
    process = run("deaf")
    output, log = process.communicate(timeout=30)

    assert process.returncode == 77, log
    assert output.split() == ["ignored"]


def test_sigterm_of_another_process_ends_as_without_handler(run: Run) -> None:
    process = run("asked")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.terminate()
    output, _ = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGTERM
    assert output == ""


def test_uvicorn_answers_its_request_and_ends_with_the_code(run: Run) -> None:
    process = run("uvicorn")
    assert process.stdout is not None
    port = process.stdout.readline().strip()

    answer = httpx.get(f"http://127.0.0.1:{port}/", timeout=30)
    _, log = process.communicate(timeout=30)

    assert (answer.status_code, answer.text) == (200, "whole")
    assert process.returncode == 75, log
    assert "Traceback" not in log


WSGI_APP = '''
"""Exhausted in the worker that is the first to make the file; normal in the next one."""
import os, sys
sys.path.insert(0, {programs!r})
from exhausted_program import make_monitor
from memtools.integrations.health import WSGIHealthApp

try:
    os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
    monitor = make_monitor()
except FileExistsError:
    monitor = make_monitor(used_mib=100)
monitor.exit_when_exhausted(grace=4)
monitor.start()
health = WSGIHealthApp(monitor)

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/health"):
        return health(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
'''


def _get(port: int, path: str) -> httpx.Response | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_gunicorn_replaces_the_worker_and_goes_on(worker: str, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    code = WSGI_APP.format(programs=str(PROGRAMS), marker=str(tmp_path / "marker"))
    (tmp_path / "service.py").write_text(code)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        port = listener.getsockname()[1]
        options = ["-b", f"fd://{listener.fileno()}", "-k", worker, "-w", "1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "service:app"],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True, pass_fds=[listener.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    try:
        pids, failed, deadline = [], 0, time.monotonic() + 30
        while len(set(pids)) < 2 and time.monotonic() < deadline:
            answer = _get(port, "/")
            if answer is None:
                failed += 1
            else:
                pids.append(answer.text)
            time.sleep(0.02)
        ready = _get(port, "/health/ready")
    finally:
        process.terminate()
        _, log = process.communicate(timeout=30)

    assert len(set(pids)) == 2, log
    assert failed == 0, log
    assert ready is not None
    assert ready.status_code == 200
    assert process.returncode == 0, log
