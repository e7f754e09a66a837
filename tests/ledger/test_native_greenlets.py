"""Budgets where a library has replaced the functions of `threading`: nothing hangs, in any order of imports."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from memtools.ledger import native_reason

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

PROGRAM = Path(__file__).with_name("programs") / "budgets_of_greenlets.py"


@pytest.mark.parametrize("order", ["before", "after", "not"])
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_budgets_of_greenlets_and_threads_end(library: str, order: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")

    command = [sys.executable, "-W", "ignore", str(PROGRAM), library, order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)

    assert done.stdout == "right\n", done.stderr


def test_gunicorn_with_gevent_answers_under_a_budget(tmp_path: Path) -> None:
    if importlib.util.find_spec("gevent") is None or importlib.util.find_spec("gunicorn") is None:
        pytest.skip("gevent and gunicorn are not installed")
    (tmp_path / "application.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-b", f"127.0.0.1:{port}", "application:application"]
    server = subprocess.Popen(command, cwd=tmp_path, env=os.environ, stderr=subprocess.DEVNULL)
    try:
        answers = [fetch(f"http://127.0.0.1:{port}/{path}") for path in ("modest", "greedy", "modest")]
    finally:
        server.terminate()
        server.wait(30)

    assert answers == ["modest", "BudgetExceeded", "modest"]


APPLICATION = """
import time
from memtools import BudgetExceeded, memory_budget

@memory_budget("3 MiB", meter="native")
def view(path):
    time.sleep(0.01)
    kept = [bytes(1000) for _ in range(30_000 if path == "/greedy" else 10)]
    return path[1:]

def application(environ, start_response):
    start_response("200 OK", [])
    try:
        return [view(environ["PATH_INFO"]).encode()]
    except BudgetExceeded as error:
        return [type(error).__name__.encode()]
"""


def fetch(url: str) -> str:
    """Return what the server answers, once it does."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:  # refused, until it listens
            time.sleep(0.1)
    raise AssertionError("the server has not started")
