"""The recipes that need processes of their own, taken from the page and run: Celery's worker, gunicorn."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("programs")
PAGE = Path(__file__).parent.parent.parent / "docs" / "recipes.md"
TIMEOUT_S = 90

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="neither of the two runs on Windows"),
]


def _blocks(heading: str) -> list[str]:
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = (part for part in section if part.startswith(f"{heading}\n"))
    return re.findall(r"```python\n(.*?)```", found, re.DOTALL)


def _wait_for(pattern: str, log: Path, process: "subprocess.Popen[bytes]") -> re.Match[str]:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = re.search(pattern, log.read_text())
        if found is not None:
            return found
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"{pattern!r} is not in the log:\n{log.read_text()}")


def _environment(folder: Path) -> dict[str, str]:
    # The folder of the recipe, and memtools from wherever this process has it.
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def _started(command: list[str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(folder), stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    pytest.importorskip("celery", reason="celery is not installed here")
    for name in ("queue", "results", "control"):
        (tmp_path / name).mkdir()
    (recipe,) = _blocks("Celery")
    recipe = recipe.replace('warn="200 MiB"', 'warn="20 MiB"')
    (tmp_path / "tasks.py").write_text((PROGRAMS / "celery_app.py").read_text() + recipe)
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency=1", "--loglevel=INFO"]
    yield from _started(command, tmp_path)


def test_celery_worker_charges_tasks_and_monitors_processes(worker, tmp_path: Path) -> None:
    _wait_for(r" ready\.", tmp_path / "log", worker)
    program = "import tasks; print(tasks.load.delay(60_000_000).get(timeout=60), tasks.load.delay(1).get(timeout=60))"

    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert said.stdout == "[60000000, 'tasks.load', ['thread']] [1, 'tasks.load', ['thread']]\n", said.stderr
    _wait_for(r"High peak: tasks\.load used", tmp_path / "log", worker)


GUNICORN_APP = """
import os

def application(environ, start_response):
    from memtools.monitor import monitors
    body = f"{os.getpid()} {[monitor.statistics().mode for monitor in monitors()]}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    pytest.importorskip("gunicorn", reason="gunicorn is not installed here")
    (tmp_path / "shop.py").write_text(GUNICORN_APP)
    (tmp_path / "gunicorn.conf.py").write_text("\n".join(_blocks("gunicorn")))
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "shop:application"]
    yield from _started(command, tmp_path)


def test_gunicorn_workers_have_monitors_and_end_cleanly(gunicorn, tmp_path: Path) -> None:
    address = _wait_for(r"Listening at: (http://127\.0\.0\.1:\d+)", tmp_path / "log", gunicorn)[1]

    seen: dict[str, str] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while len(seen) < 2 and time.monotonic() < deadline:
        with urllib.request.urlopen(address, timeout=30) as answer:
            pid, _, modes = answer.read().decode().partition(" ")
        seen[pid] = modes
    gunicorn.send_signal(signal.SIGTERM)
    code = gunicorn.wait(30)

    assert str(gunicorn.pid) not in seen
    assert set(seen.values()) == {"['thread']"}
    assert len(seen) == 2
    assert code == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
