"""`memtools top`: what it finds, what it prints once, and how it behaves on a terminal."""

import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from memtools._text import display_width
from memtools.black_box import BlackBox, Holding, PastReading
from memtools.black_box._live import LiveBox
from memtools.commands._main import main
from memtools.commands._top import top_lines
from memtools.commands._top_figures import BoxWatcher, OwnerFigures, ProcessFigures, resident_rate, seconds_to_limit
from memtools.ledger import native_reason
from memtools.readings import Level, Reading

if sys.platform != "win32":
    import fcntl
    import pty
    import termios

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no black boxes on Windows"),
]
native = pytest.mark.skipif(bool(native_reason()), reason="only the native ledger writes owners")

MIB = 2**20
TIMEOUT_S = 60
NASTY = "POST \x1b[2J\x1b]0;title\x07\u202e\n\r/import 輸入/漢字"
PROGRAM = """
import sys, time
from memtools import memory_scope
from memtools.black_box import BlackBox
from memtools.readings import Level, Reading
with BlackBox(sys.argv[1], name=sys.argv[2]) as box, memory_scope("service"), memory_scope("POST \\x1b[31m /import"):
    rows = [bytes(1_000_000) for _ in range(5)]
    box.observe(Reading(90 << 20, 100 << 20, time.monotonic()), Level.CRITICAL)
    print("ready", flush=True)
    sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Generator[Start]:
    """Start a program with a black box in the folder of the test; it ends when its standard input is closed."""
    started: list[subprocess.Popen[str]] = []

    def program(name: str = "shop", folder: Path = tmp_path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PROGRAM, str(folder), name]
        made = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        started.append(made)
        assert made.stdout is not None
        assert made.stdout.readline() == "ready\n"
        return made

    yield program
    for each in started:
        each.kill()
        each.communicate()


@pytest.fixture
def box(tmp_path: Path) -> Generator[BlackBox]:
    """The box of this process."""
    with BlackBox(tmp_path, name="own") as made:
        made.observe(Reading(50 * MIB, 100 * MIB, time.monotonic()), Level.WARNING)
        yield made


class TestOnce:
    @native
    def test_folder_shows_processes_and_their_owners(
        self, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first, second = start("shop"), start("worker")

        assert main(["top", str(tmp_path), "--once"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"memtools top  \S+  2 processes, resident 180\.0 MiB, owners by live", lines[0])
        assert [line.split()[:5] for line in lines[2:4]] == [
            [str(each.pid), name, "90.0", "MiB", "100.0"]
            for each, name in sorted([(first, "shop"), (second, "worker")], key=lambda pair: pair[0].pid)
        ]
        assert lines[2].endswith("critical")
        assert {tuple(line.split(maxsplit=5)[3:]) for line in lines[6:8]} == {
            ("1", str(each.pid), "service > POST \\x1b[31m /import") for each in (first, second)
        }
        assert "4.8 MiB" in lines[6]

    @native
    def test_json_has_every_name_and_figure(
        self, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program = start()

        assert main(["top", str(tmp_path), "--json", "--every", "0.1"]) == 0
        found = json.loads(capsys.readouterr().out)
        (process,) = found["processes"]
        assert (process["pid"], process["state"], process["level"]) == (program.pid, "alive", 2)
        assert (process["resident_bytes"], process["limit_bytes"]) == (90 * MIB, 100 * MIB)
        owner = found["owners"][0]
        assert owner["path"] == ["service", "POST \\x1b[31m /import"]  # as the ledger keeps it
        assert owner["live_bytes"] >= 5_000_000
        assert isinstance(owner["rate_bytes_per_s"], float)  # by two looks
        assert process["counted_bytes"] == sum(each["live_bytes"] for each in found["owners"])

    def test_process_is_found_by_its_id(
        self, box: BlackBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MEMTOOLS_BLACK_BOX", str(tmp_path))
        for words in ([str(os.getpid())], [], [box.path]):
            assert main(["top", *words]) == 0
            assert f"{os.getpid()}  own" in capsys.readouterr().out

    def test_pipe_gets_a_block_for_each_look(self, start: Start, tmp_path: Path) -> None:
        start()
        command = [sys.executable, "-m", "memtools", "top", str(tmp_path), "--every", "0.1", "--sort", "name"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as top:
            assert top.stdout is not None
            assert top.stderr is not None
            titles = 0
            for line in top.stdout:
                assert "\x1b" not in line
                titles += line.startswith("memtools top  ")
                if titles == 3:
                    break
            top.stdout.close()  # as `| head` does
            assert top.wait(TIMEOUT_S) == 1
            assert top.stderr.read() == ""


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "code", "message"),
        [
            (["redis://host/0"], 2, "redis://host/0 is a pool: `python -m memtools nodes redis://host/0` shows"),
            (["/no/such\x1b"], 2, "/no/such\\x1b is neither the id of a process nor a folder of black boxes"),
            (["--every", "0"], 2, "--every=0.0 is not accepted"),
            (["--every", "x"], 2, "--every='x' is not accepted"),
            ([str(2**31 - 1)], 1, "there is no process 2147483647 here, and no black box of one in "),
        ],
    )
    def test_targets_that_are_none_are_refused(
        self, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["top", *words]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("memtools top: ")
        assert message in err

    def test_process_without_a_box_is_told_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MEMTOOLS_BLACK_BOX", str(tmp_path))
        assert main(["top", str(os.getppid())]) == 1
        err = capsys.readouterr().err
        assert f"process {os.getppid()} has no black box in {tmp_path}" in err
        assert "start the program with MEMTOOLS_BLACK_BOX=/dev/shm" in err

        assert main(["top", str(tmp_path)]) == 1
        assert f"no process that runs has a black box in {tmp_path}. To have one" in capsys.readouterr().err

    def test_boxes_of_the_dead_are_for_a_post_mortem(
        self, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program = start()
        program.kill()
        program.wait(TIMEOUT_S)
        (path,) = tmp_path.glob("*.box")

        assert main(["top", str(tmp_path)]) == 1
        assert f"`python -m memtools postmortem {tmp_path}`" in capsys.readouterr().err
        assert main(["top", str(path)]) == 1
        assert f"`python -m memtools postmortem {path}`" in capsys.readouterr().err


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestWatching:
    def test_processes_come_and_go(self, start: Start, tmp_path: Path) -> None:
        clock = Clock()
        watcher = BoxWatcher(lambda: [str(path) for path in tmp_path.glob("*")], clock, clock)
        (tmp_path / "no.1.1.box").write_text("nothing")
        first = start("first")
        watcher.update()
        second = start("second")
        watcher.update()
        assert [each.name for each in watcher.processes()] == ["first"]
        clock.now += 1.0
        watcher.update()
        assert {each.name for each in watcher.processes()} == {"first", "second"}

        first.kill()
        second.communicate("")
        for each in (first, second):
            each.wait(TIMEOUT_S)
        clock.now += 1.0
        watcher.update()
        assert {(each.name, each.state) for each in watcher.processes()} == {("first", "killed"), ("second", "ended")}
        clock.now += 59.0
        watcher.update()
        assert len(watcher.processes()) == 2
        clock.now += 2.0
        watcher.update()
        assert watcher.processes() == []
        watcher.close()

    @native
    def test_owners_come_in_the_order_that_is_asked_for(self, tmp_path: Path) -> None:
        from memtools import memory_scope

        clock = Clock()
        with BlackBox(tmp_path) as box:
            watcher = BoxWatcher(lambda: [box.path], clock, clock)
            with memory_scope("b-large"):
                large = bytes(8 * MIB)
            with memory_scope("a-small"):
                small = [bytes(MIB)]
                watcher.update()
                assert watcher.owners("live", 1)[0].rate_bytes_per_s is None
                small.append(bytes(2 * MIB))
            clock.now += 2.0
            watcher.update()

            first = {order: watcher.owners(order, 1)[0] for order in ("live", "rate", "name")}
            assert [each.holding.path for each in first.values()] == [("b-large",), ("a-small",), ("<no owner>",)]
            assert first["rate"].rate_bytes_per_s == pytest.approx(MIB, rel=0.1)
            assert [len(watcher.owners("live", most)) for most in (0, 2)] == [0, 2]
            watcher.close()
            del large, small

    def test_rates_are_those_of_the_last_half_minute(self, tmp_path: Path, box: BlackBox) -> None:
        clock = Clock()
        watcher = BoxWatcher(lambda: [box.path], clock, clock)
        for _ in range(100):
            watcher.update()
            clock.now += 1.0
        (process,) = watcher._watched.values()
        assert 15.0 <= clock.now - 1.0 - process._older[0] <= 31.0
        watcher.close()

    def test_folder_that_is_gone_leaves_what_is_open(self, box: BlackBox) -> None:
        found = [box.path]

        def find() -> list[str]:
            if not found:
                raise FileNotFoundError
            return found

        clock = Clock()
        watcher = BoxWatcher(find, clock, clock)
        watcher.update()
        found.clear()
        clock.now += 5.0
        watcher.update()
        assert len(watcher.processes()) == 1
        watcher.close()

    def test_file_that_goes_before_it_is_read_is_left_out(
        self, box: BlackBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watcher = BoxWatcher(lambda: [str(tmp_path / "gone.1.1.box")])
        watcher.update()
        assert watcher.processes() == []

        def fail(_: LiveBox) -> str:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(LiveBox, "state", fail)
        watcher = BoxWatcher(lambda: [box.path])
        watcher.update()
        assert watcher.processes() == []
        watcher.close()

    def test_looking_takes_no_lock_of_the_file(self, box: BlackBox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("memtools.black_box._live.is_held", lambda _: pytest.fail("locked"))
        with LiveBox(box.path) as live:
            assert live.state() == "alive"


def reading(at: float, used: float, limit: int | None = 1000 * MIB) -> PastReading:
    return PastReading(at, at, int(used), limit, None, None, None, 0)


class TestForecast:
    def test_floor_that_rises_reaches_the_limit(self) -> None:
        rising = [reading(at, (100 + at) * MIB) for at in range(100)]
        assert seconds_to_limit(rising) == pytest.approx(801, rel=0.1)
        assert resident_rate(rising) == pytest.approx(MIB)

    @pytest.mark.parametrize(
        "readings",
        [
            [],
            [reading(1, MIB)],
            [reading(at, 100 * MIB) for at in range(100)],
            [reading(at / 10, (100 + at) * MIB) for at in range(100)],  # ten seconds are the start of a program
            [reading(at, (100 + at) * MIB, None) for at in range(100)],
            [reading(0, at * MIB) for at in range(100)],  # a clock that stands
            [reading(30 * at, (100 + at) * MIB) for at in range(10)],
        ],
    )
    def test_nothing_is_forecast_without_evidence(self, readings: list[PastReading]) -> None:
        assert seconds_to_limit(readings) is None

    def test_gap_between_readings_does_no_harm(self) -> None:
        readings = [reading(at, (100 + at) * MIB) for at in range(200) if not 60 < at < 120]
        assert seconds_to_limit(readings) == pytest.approx(700, rel=0.15)

    def test_rate_needs_two_readings(self) -> None:
        assert resident_rate([]) is None
        assert resident_rate([reading(1, MIB)]) is None


def process(pid: int, **changes: object) -> ProcessFigures:
    fields: dict[str, object] = {
        "pid": pid, "name": NASTY, "path": "", "state": "alive", "counted_bytes": 123 * MIB,
        "resident_bytes": 1023 * MIB, "limit_bytes": 2000 * MIB, "level": 2, "age_s": 3.0,
        "rate_bytes_per_s": -99_999.0, "seconds_to_limit": 50_000.0, "notes": (),
    }  # fmt: skip
    return ProcessFigures(**(fields | changes))  # type: ignore[arg-type]


def owner(pid: int, name: str = NASTY, held: int = 77 * MIB) -> OwnerFigures:
    return OwnerFigures(pid, Holding(("service", name), "", held, 1234), 5_000.0)


class TestLines:
    @pytest.mark.parametrize("width", [80, 81, 100, 120, 200])
    @pytest.mark.parametrize("height", [None, 1, 2, 5, 8, 24, 50])
    def test_lines_fit_every_terminal(self, width: int, height: int | None) -> None:
        processes = [process(10_000_000 + number, notes=("the file was cut",)) for number in range(30)]
        owners = [owner(10_000_000, NASTY * repeat) for repeat in (1, 3, 50)] * 20

        lines = top_lines(processes, owners, "live", width=width, height=height)
        texts = [text for text, _ in lines]
        assert max(map(display_width, texts)) <= width
        assert all(text.isprintable() for text in texts)
        assert height is None or len(lines) <= height
        if height is None:
            assert len(lines) == 1 + 31 + 1 + 61 + 1
        elif height >= 8:
            assert any("service > " in text for text in texts)
            assert any("more processes" in text for text in texts)
            assert texts[-1].startswith("note: ")

    def test_columns_go_where_there_is_too_little_room(self) -> None:
        wide, narrow = (top_lines([process(1)], [], "live", width=width)[1][0].split() for width in (200, 80))

        assert " ".join(wide) == "pid process resident limit used per min limit in counted read level"
        assert narrow[-1] == "level"
        assert "read" not in narrow

    def test_what_is_not_known_is_a_dash(self) -> None:
        unknown = dict.fromkeys(
            ("counted_bytes", "resident_bytes", "limit_bytes", "level", "age_s", "rate_bytes_per_s", "seconds_to_limit")
        )
        (row,) = top_lines([process(7, name="x", **unknown)], [], "live", width=120)[2:]
        assert row == ("7  x".rjust(row[0].index("x") + 1) + row[0][row[0].index("x") + 1 :], "")
        assert row[0].split()[2:] == ["-"] * 8

    def test_levels_have_their_colours(self) -> None:
        rows = [process(1, level=0), process(2, level=1), process(3), process(4, state="killed")]
        kinds = [kind for _, kind in top_lines(rows, [], "live", width=120)[2:]]
        assert kinds == ["", "doubt", "bad", "bad"]


class Terminal:
    """`memtools top` on a terminal of its own."""

    def __init__(self, words: list[str], *, columns: int = 100, lines: int = 20, has_rich: bool = True) -> None:
        self._main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(terminal)
        hide = "" if has_rich else "sys.modules['rich.console'] = None; "
        code = f"import sys; {hide}from memtools.commands._main import main; sys.exit(main())"
        self.program = subprocess.Popen(
            [sys.executable, "-c", code, "top", *words],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C comes as a signal
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
        )  # fmt: skip
        self._terminal = terminal
        self.text = ""

    def read_until(self, pattern: str) -> None:
        """Read from here on, until the text comes."""
        end = time.monotonic() + TIMEOUT_S
        self.text = ""
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, self.text
            if select.select([self._main], [], [], 0.1)[0]:
                self.text += os.read(self._main, 1 << 16).decode()

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def end(self) -> int:
        """Wait for the end; return the exit code. The terminal is as it was."""
        code = self.program.wait(TIMEOUT_S)
        while select.select([self._main], [], [], 0)[0]:
            self.text += os.read(self._main, 1 << 16).decode()
        assert termios.tcgetattr(self._terminal) == self.before
        return code

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self._main)
        os.close(self._terminal)


@pytest.fixture
def terminal() -> Generator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def open_terminal(words: list[str], **options: object) -> Terminal:
        made.append(Terminal(words, **options))  # type: ignore[arg-type]
        return made[-1]

    yield open_terminal
    for each in made:
        each.close()


class TestTerminal:
    def test_keys_sort_and_quit(self, start: Start, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
        start()
        top = terminal([str(tmp_path), "--every", "30"])
        top.read_until("owners by live")
        assert "\x1b[?1049h" in top.text  # a screen of its own
        assert "\x1b[1;31m" in top.text or native_reason()  # the critical one
        top.type("r")
        top.read_until("owners by rate")
        top.type("x")
        top.type("n")
        top.read_until("owners by name")
        top.type("q")

        assert top.end() == 0
        assert top.text.endswith("\x1b[?1049l")  # the former content comes back
        assert "Traceback" not in top.text

    @pytest.mark.parametrize("has_rich", [True, False])
    def test_ctrl_c_ends_cleanly(
        self, has_rich: bool, start: Start, tmp_path: Path, terminal: Callable[..., Terminal]
    ) -> None:
        start()
        top = terminal([str(tmp_path), "--every", "0.1"], has_rich=has_rich)
        top.read_until("memtools top")
        top.read_until("memtools top")
        assert ("\x1b[H\x1b[J" in top.text) is not has_rich
        top.type("\x03")

        assert top.end() == 0
        assert "Traceback" not in top.text

    def test_sigterm_leaves_the_terminal_as_it_was(
        self, start: Start, tmp_path: Path, terminal: Callable[..., Terminal]
    ) -> None:
        start()
        top = terminal([str(tmp_path)])
        top.read_until("level")
        top.program.send_signal(signal.SIGTERM)

        assert top.end() == 128 + signal.SIGTERM
        assert "\x1b[?25h" in top.text  # the cursor is there again

    def test_screen_has_the_size_of_the_terminal(
        self, start: Start, tmp_path: Path, terminal: Callable[..., Terminal]
    ) -> None:
        for number in range(3):
            start(f"worker-{number}")
        top = terminal([str(tmp_path), "--every", "30"], columns=80, lines=6)
        top.read_until("more processes.*\n")
        top.type("q")
        assert top.end() == 0
        shown = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", top.text.partition("\x1b[H")[2])
        assert all(len(line) <= 80 for line in shown.split("\r\n"))
        assert shown.count("\r\n") < 2 * 6
