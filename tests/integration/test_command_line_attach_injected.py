"""`memtools attach` to programs without a black box, by `sys.remote_exec`; each has to run on as if it had not been."""

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memtools.commands import _injection
from memtools.commands._main import main
from memtools.ledger import native_reason
from memtools.readings import _other_processes

pytestmark = pytest.mark.skipif(not hasattr(sys, "remote_exec"), reason="sys.remote_exec came with Python 3.14")

PROGRAM = Path(__file__).with_name("programs") / "attached.py"
TIMEOUT_S = 60

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of a path that a socket's name has room for."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def running(*words: str, python: tuple[str, ...] = ("-I",)) -> Iterator["subprocess.Popen[str]"]:
    """A program that has no memtools and is ready; at the end it has to be alive and to have written nothing."""
    command = [sys.executable, *python, *words]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            output = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert output == ("", "")
    assert process.returncode == -signal.SIGTERM


def wait_for_call(process: "subprocess.Popen[str]", call: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while _other_processes.waiting_call(process.pid) != call:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `memtools attach` in this process; returns the exit code, stdout and stderr."""

    def command(process: "subprocess.Popen[str]", *words: str) -> tuple[int, str, str]:
        return main(["attach", str(process.pid), *words]), *capsys.readouterr()

    return command


@pytest.mark.parametrize("kind", ["busy", "idle"])
def test_event_loop_answers_busy_or_idle(ask: Ask, folder: Path, kind: str) -> None:
    with running(str(PROGRAM), kind) as process:
        code, out, err = ask(process, "heap", "--seconds", "0.5", "--json")

    assert (code, err) == (0, "")
    growing = json.loads(out)["found"]["growing"]
    assert any(text.startswith("list __main__.KEPT +") for text in growing) == (kind == "busy")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("kind", "call"), [("event", "futex"), ("blocked", "pselect6")])
def test_program_that_waits_in_the_kernel_is_told(ask: Ask, folder: Path, kind: str, call: str) -> None:
    with running(str(PROGRAM), kind) as process:
        wait_for_call(process, call)
        code, out, err = ask(process)
        (left,) = folder.iterdir()

        assert (code, out) == (1, "")
        assert f"its main thread waits in the system call {call}" in err
        assert "MEMTOOLS_BLACK_BOX" in err
        assert [(path.name, path.read_text()) for path in left.iterdir()] == [("attach.py", "")]


def test_request_that_comes_too_late_leaves_no_trace(ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_injection, "_HELLO_S", 0.2)
    code = "print('ready', flush=True); input(); sum(range(100)); print('went on', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        wait_for_call(process, "read")
        assert ask(process)[0] == 1
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "went on\n"  # it has run the empty script
        assert process.communicate("\n", timeout=TIMEOUT_S) == ("", "")
        assert process.returncode == 0
    (left,) = folder.iterdir()
    _injection._remove_left_folders(str(folder))
    assert not left.exists()


def test_code_that_keeps_the_gil_is_told_with_its_stack(ask: Ask) -> None:
    code = "import re; print('ready', flush=True); re.match(r'(a+)+$', 'a' * 60 + 'b')"
    with running("-c", code) as process:
        time.sleep(0.5)  # until it is in C
        assert _other_processes.waiting_call(process.pid) == "running"
        result, _, err = ask(process, "heap", "--seconds", "0", "--timeout", "1")

    assert result == 1
    assert "no answer within 1 s" in err
    assert "match (" in err  # `prefixmatch` since Python 3.15


def test_process_that_is_killed_meanwhile_is_told_at_once(ask: Ask) -> None:
    with subprocess.Popen([sys.executable, str(PROGRAM), "work"], text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        timer = threading.Timer(1.0, process.kill)
        timer.start()
        begun = time.monotonic()
        code, _, err = ask(process, "heap", "--seconds", "60")
        timer.join()

    assert code == 1
    assert "it has ended, or its thread did, before it has answered" in err
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("word", ["report", "leaks"])
def test_program_that_ends_meanwhile_ends_as_it_would_alone(ask: Ask, folder: Path, word: str) -> None:
    code = "import sys, time; print('ready', flush=True); until = time.time() + 1.5\n"
    code += "while time.time() < until: time.sleep(0.01)\nprint('done'); sys.exit(7)"
    with subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        result, _, err = ask(process, word, "--seconds", "60")
        output = process.communicate(timeout=TIMEOUT_S)

    assert result == 1
    assert "it has ended, or its thread did" in err
    assert (process.returncode, *output) == (7, "done\n", "")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "env"), [(("-X", "disable-remote-debug"), {}), ((), {"PYTHON_DISABLE_REMOTE_DEBUG": "1"})]
)
def test_process_that_forbids_it_is_told(
    ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], env: dict[str, str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with running(str(PROGRAM), "work", python=options) as process:
        code, _, err = ask(process)

    assert code == 2
    assert "it was started with -X disable-remote-debug or PYTHON_DISABLE_REMOTE_DEBUG" in err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(1, "Operation not permitted"), "ptrace_scope may forbid it, so try root"),
        (
            RuntimeError("Can't send commands from a Python 3.14 process to a Python 3.15 process"),
            "run memtools by the",
        ),
        (RuntimeError("PyRuntime address lookup failed"), "no Python of 3.14 or later, or another build"),
    ],
)
def test_errors_of_the_interpreter_say_what_to_do(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    with running(str(PROGRAM), "work") as process:
        monkeypatch.setattr(sys, "remote_exec", refuse)
        code, _, err = ask(process)

    assert code == 2
    assert text in err


def test_folder_that_cannot_be_written_is_told(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with running(str(PROGRAM), "work") as process:
        code, _, err = ask(process)

    assert code == 2
    assert "its folder for temporary files cannot be written" in err


def test_signal_while_it_is_woken_reaches_the_program(ask: Ask) -> None:
    code = """
import asyncio, signal
async def main():
    seen = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, seen.append, 1)
    print("ready", flush=True)
    while len(seen) < 20:
        await asyncio.sleep(0.5)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(20):
            _injection._wake(process.pid)
            process.send_signal(signal.SIGUSR1)
            _injection._wake(process.pid)
            time.sleep(0.01)
        assert process.wait(timeout=TIMEOUT_S) == 0


def test_call_of_the_system_has_a_name() -> None:
    with running(str(PROGRAM), "blocked") as process:
        wait_for_call(process, "pselect6")
    assert _other_processes.waiting_call(process.pid) == ""


def test_route_of_a_service_is_named_with_what_each_call_leaves(ask: Ask, tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    service = PROGRAM.parents[1] / "leaking_service.py"
    has_ended = threading.Event()
    order = {"lines": [{"id": number, "price": 1.5, "count": 3} for number in range(50)]}

    def load(port: str) -> None:
        with httpx.Client() as client:
            while not has_ended.is_set():
                assert client.post(f"http://127.0.0.1:{port}/orders", json=order).status_code == 200
                time.sleep(0.005)

    with subprocess.Popen(
        [sys.executable, str(service), "bare"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        clients = threading.Thread(target=load, args=[process.stdout.readline().strip()])
        clients.start()
        code, out, _ = ask(process, "--seconds", "2", "--json")
        has_ended.set()
        clients.join()
        process.terminate()
        output = process.communicate(timeout=TIMEOUT_S)

    assert code == 0
    assert output == ("", "")
    found = json.loads(out)["found"]
    (orders,) = (each for each in found["owners"]["owners"] if each["name"] == "/orders")
    assert orders["calls"] > 10
    assert 100_000 <= orders["per_call_bytes"] < 110_000 or native_reason()
    assert any("BoundedList __main__.history +" in text for text in found["heap"]["growing"])


def test_garbage_instead_of_an_answer_is_told() -> None:
    import socket

    for sent, text in (
        (b"stack\0[1]\0", "what it has sent is no answer"),
        (b"stack\0{\0", "what it has sent is no answer"),
        (b'stack\0{"refused": "no"}\0', "the process refuses: no"),
        (b"main (x.py:1)\0{", r"its main thread is in main \(x.py:1\)"),
        (b"", "it has ended, or its thread did"),
    ):
        ours, other = socket.socketpair()
        with ours:
            with other:
                other.sendall(sent)
            with pytest.raises(_injection.NoAnswer, match=text):
                _injection._receive(ours, 5.0)
