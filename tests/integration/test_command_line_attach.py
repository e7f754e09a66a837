"""`memtools attach`: real programs that are asked while they run, on every Python."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memtools.commands import _attach
from memtools.commands._main import main
from memtools.ledger import native_reason
from memtools.readings import _other_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the open files of other processes are known on Linux")
needs_native = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

PROGRAM = Path(__file__).with_name("programs") / "attached.py"
TIMEOUT_S = 60

Answer = tuple[int, str, str]
Ask = Callable[..., Answer]


@contextmanager
def running(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """A program that is ready; at the end it has to be alive and to have written nothing."""
    with subprocess.Popen(
        [sys.executable, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            output = process.communicate(timeout=TIMEOUT_S)
    assert output == ("", "")


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `memtools attach` in this process; returns the exit code, stdout and stderr."""

    def command(process: "subprocess.Popen[str] | int", *words: str) -> Answer:
        pid = process if isinstance(process, int) else process.pid
        return main(["attach", str(pid), *words]), *capsys.readouterr()

    return command


class TestMailbox:
    @pytest.mark.parametrize(
        "kind",
        ["busy", "event", *(pytest.param(kind, marks=pytest.mark.once) for kind in ("idle", "threads", "blocked"))],
    )
    def test_program_of_any_kind_answers(self, ask: Ask, tmp_path: Path, kind: str) -> None:
        with running(str(PROGRAM), kind, str(tmp_path)) as process:
            code, out, err = ask(process, "report")

        assert (code, err) == (0, "")
        assert out.startswith("monitor: NORMAL for ")
        assert "what to change:" in out
        assert [path.suffix for path in tmp_path.iterdir()] == [".box"]

    @needs_native
    def test_owners_name_the_route_and_the_bytes_per_call(self, ask: Ask, tmp_path: Path) -> None:
        with running(str(PROGRAM), "event", str(tmp_path)) as process:
            code, out, _ = ask(process, "owners", "--seconds", "0.5", "--json")

        found = json.loads(out)
        assert code == 0
        assert found["pid"] == process.pid
        (orders,) = (each for each in found["found"]["owners"] if each["name"] == "POST /orders")
        assert orders["calls"] > 5
        assert 1000 <= orders["per_call_bytes"] < 1100

    @pytest.mark.once
    def test_heap_names_the_container_that_grows(self, ask: Ask, tmp_path: Path) -> None:
        with running(str(PROGRAM), "threads", str(tmp_path)) as process:
            code, out, _ = ask(process, "heap", "--seconds", "1")

        assert code == 0
        assert "growing in 1 s: list __main__.KEPT +" in out

    @pytest.mark.once
    def test_program_under_run_answers(self, ask: Ask, tmp_path: Path) -> None:
        words = ("-m", "memtools", "run", "--black-box", str(tmp_path), str(PROGRAM), "work")
        with running(*words) as process:
            code, out, _ = ask(process, "report")

        assert code == 0
        assert "the program, up to now" in out

    @pytest.mark.once
    def test_process_that_ends_meanwhile_is_told(self, ask: Ask, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, str(PROGRAM), "work", str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            timer = threading.Timer(1.0, process.kill)
            timer.start()
            code, out, err = ask(process, "owners", "--seconds", "60")
            timer.join()

        assert (code, out) == (1, "")
        assert err == f"memtools attach: process {process.pid}: the process, or its monitor, has ended meanwhile\n"

    @pytest.mark.once
    def test_stopped_process_is_given_up_in_time(
        self, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from memtools.black_box import _mailbox

        monkeypatch.setattr(_mailbox, "_GRACE_S", 0.2)
        with running(str(PROGRAM), "work", str(tmp_path)) as process:
            process.send_signal(signal.SIGSTOP)
            code, _, err = ask(process)
            process.send_signal(signal.SIGCONT)

        assert code == 1
        assert "its monitor did not look: does its event loop hang, is it stopped" in err


class TestPrinting:
    def test_control_characters_of_an_answer_are_escaped(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_attach, "box_of_process", lambda _: "x.box")
        monkeypatch.setattr(_attach, "ask", lambda *_, **__: {"lines": ["\x1b[31mred", 7], "word": "report"})
        code, out, _ = ask(os.getppid())
        assert code == 0
        assert out == "\\x1b[31mred\n7\n"
        assert json.loads(ask(os.getppid(), "--json")[1])["lines"][0] == "\x1b[31mred"

    def test_answer_without_lines_prints_nothing(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_attach, "box_of_process", lambda _: "x.box")
        monkeypatch.setattr(_attach, "ask", lambda *_, **__: {"lines": 3})
        assert ask(os.getppid()) == (0, "", "")

    def test_control_c_ends_the_asking_only(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(_attach, "box_of_process", lambda _: "x.box")
        monkeypatch.setattr(_attach, "ask", interrupt)
        assert ask(os.getppid()) == (1, "", "memtools attach: interrupted; the process goes on\n")

    @pytest.mark.parametrize(
        ("words", "seconds"),
        [((), 0.0), (("owners",), 10.0), (("heap", "--seconds", "3"), 3.0), (("leaks",), 20.0),
         (("leaks", "--seconds", "1"), 6.0)],
    )  # fmt: skip
    def test_each_question_has_its_own_time(
        self, ask: Ask, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], seconds: float
    ) -> None:
        asked: list[float] = []

        def note(_box: str, _word: str, observed_s: float, **_: object) -> dict[str, object]:
            asked.append(observed_s)
            return {}

        monkeypatch.setattr(_attach, "box_of_process", lambda _: "x.box")
        monkeypatch.setattr(_attach, "ask", note)
        ask(os.getppid(), *words)
        assert asked == [seconds]

    def test_system_without_proc_knows_boxes_only(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_attach, "_HAS_PROC", False)
        monkeypatch.setattr(_attach, "box_of_process", lambda _: None)
        code, _, err = ask(os.getppid())
        assert code == 2
        assert "it has no black box" in err


class TestRefusals:
    def test_process_that_is_not_there_is_an_error(self, ask: Ask) -> None:
        pid = 2**22 + 1
        assert ask(pid) == (2, "", f"memtools attach: process {pid}: there is no such process\n")

    def test_own_process_is_an_error(self, ask: Ask) -> None:
        assert "that is this process itself" in ask(os.getpid())[2]

    def test_program_that_is_no_python_is_an_error(self, ask: Ask) -> None:
        with subprocess.Popen(["sleep", "60"]) as process:
            code, _, err = ask(process)
            process.kill()

        assert code == 2
        assert "it runs no Python" in err

    @pytest.mark.skipif(hasattr(sys, "remote_exec"), reason="this Python can reach it without a box")
    def test_python_without_a_box_says_what_to_do(self, ask: Ask) -> None:
        with running(str(PROGRAM), "work") as process:
            code, _, err = ask(process)

        assert code == 2
        assert "it has no black box: start it with MEMTOOLS_BLACK_BOX=/dev/shm" in err

    def test_process_of_another_user_is_an_error(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: int) -> Any:
            raise PermissionError

        monkeypatch.setattr(_attach, "box_of_process", refuse)
        parent = os.getppid()
        assert "the system lets this process not look at it" in ask(parent)[2]
        monkeypatch.setattr(_attach, "process_user", lambda _: 65534)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        code, _, err = ask(parent)
        assert code == 2
        assert "(65534), and only that user and root may ask" in err
        monkeypatch.setattr(_attach, "process_user", lambda _: None)
        assert "it has ended meanwhile" in ask(parent)[2]

    def test_user_without_a_name_is_a_number(self) -> None:
        assert _other_processes.user_name(2**31 - 5) == f"user {2**31 - 5}"
        assert _other_processes.process_user(2**22 + 1) is None
        assert not _other_processes.is_python(2**22 + 1)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("1", "everything"), "invalid choice: 'everything'"),
            (("one",), "invalid int value: 'one'"),
            (("1", "--seconds", "-1"), "--seconds: -1.0 is not between 0 and 600"),
            (("1", "--timeout", "nan"), "--timeout: nan is not between 0 and 600"),
        ],
    )
    def test_wrong_arguments_are_errors(
        self, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["attach", *words])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
