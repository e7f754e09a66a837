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

PAGE = Path(__file__).parent.parent.parent / "docs" / "recipes.md"
PATIENCE_S = 90

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="neither of the two runs on Windows")


def _blocks(heading: str) -> list[str]:
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = (part for part in section if part.startswith(f"{heading}\n"))
    return re.findall(r"```python\n(.*?)```", found, re.DOTALL)


def _wait_for(pattern: str, log: Path, process: "subprocess.Popen[bytes]") -> re.Match[str]:
    deadline = time.monotonic() + PATIENCE_S
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


CELERY_APP = """
from celery import Celery

FOLDER = {folder!r}
app = Celery("tasks", broker="filesystem://", backend="file://" + FOLDER + "/results")
app.conf.broker_transport_options = dict(
    data_folder_in=FOLDER + "/queue", data_folder_out=FOLDER + "/queue", control_folder=FOLDER + "/control"
)
app.conf.worker_cancel_long_unfinished_tasks_on_connection_loss = True
app.conf.broker_connection_retry_on_startup = True

@app.task
def load(size_bytes):
    from memtools.ledger import active_owner
    from memtools.monitor import monitors
    block = bytearray(b"x") * size_bytes
    return len(block), active_owner().name, [monitor.statistics().mode for monitor in monitors()]
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    pytest.importorskip("celery", reason="celery is not installed here")
    for name in ("queue", "results", "control"):
        (tmp_path / name).mkdir()
    (recipe,) = _blocks("Celery")
    recipe = recipe.replace("200 MiB", "20 MiB")
    (tmp_path / "tasks.py").write_text(CELERY_APP.format(folder=str(tmp_path)) + recipe)
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency=1", "--loglevel=INFO"]
    yield from _started(command, tmp_path)


def test_a_celery_worker_charges_each_task_and_watches_each_process(worker, tmp_path: Path) -> None:
    _wait_for(r" ready\.", tmp_path / "log", worker)
    program = "import tasks; print(tasks.load.delay(60_000_000).get(timeout=60), tasks.load.delay(1).get(timeout=60))"

    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
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


def test_each_gunicorn_worker_has_a_monitor_and_ends_cleanly(gunicorn, tmp_path: Path) -> None:
    address = _wait_for(r"Listening at: (http://127\.0\.0\.1:\d+)", tmp_path / "log", gunicorn)[1]

    seen: dict[str, str] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(seen) < 2 and time.monotonic() < deadline:
        with urllib.request.urlopen(address, timeout=30) as answer:
            pid, _, beats = answer.read().decode().partition(" ")
        seen[pid] = beats
    gunicorn.send_signal(signal.SIGTERM)
    code = gunicorn.wait(30)

    assert str(gunicorn.pid) not in seen
    assert set(seen.values()) == {"['thread']"}
    assert len(seen) == 2
    assert code == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
