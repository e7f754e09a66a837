"""`memtools postmortem` and `run --black-box`: from a killed program to what is printed of it."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import html5lib
import pytest

from memtools import memory_scope
from memtools.black_box import BlackBox, Holding, PostMortem, read_black_box
from memtools.commands import _recording
from memtools.commands._main import main
from memtools.commands._postmortem import postmortem_page
from memtools.ledger import native_reason
from memtools.readings import Level, Reading

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no black boxes on Windows"),
]

MIB = 2**20
TIMEOUT_S = 90
KILLED = """
import os, signal, time
from memtools import memory_scope
with memory_scope("POST /import"):
    rows = [bytes(1_000_000) for _ in range(20)]
    time.sleep(0.6)  # until a reading is there
    os.kill(os.getpid(), signal.SIGKILL)
"""
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = [0] * 1000'])"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `python -m memtools`."""

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "memtools", *words], cwd=tmp_path, text=True, timeout=TIMEOUT_S, check=False,
            capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip

    return command


def test_killed_run_is_told_by_file_and_by_folder(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("run", "--black-box", str(tmp_path), "-c", KILLED)

    (path,) = tmp_path.glob("*.box")
    by_path = run("postmortem", str(path))
    assert by_path.returncode == 0
    assert main(["postmortem", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == by_path.stdout.splitlines()[0]
    assert "was killed" in by_path.stdout
    assert "last reading" in by_path.stdout
    if not native_reason():
        assert "-c > POST /import  (1 open)" in by_path.stdout
        assert "single owner #" in by_path.stdout


def test_json_of_a_folder_is_a_list_of_what_each_says(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("run", "--black-box", str(tmp_path), "-c", CHILD)

    assert main(["postmortem", "--json", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["verdict"] for each in found] == ["ended", "ended"]  # the program, and the Python that it started
    (one, *_) = tmp_path.glob("*.box")
    assert main(["postmortem", "--json", str(one)]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(one)
    assert main(["postmortem", str(tmp_path)]) == 0
    assert "other boxes in this folder, the newest first:" in capsys.readouterr().out


def test_files_that_are_no_boxes_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> "tuple[int, str, str]":
        return main(words), *capsys.readouterr()

    other = tmp_path / "x.1.1.box"
    other.write_text("\x1b[31m")

    no_box, nothing = run("postmortem", str(other)), run("postmortem", str(tmp_path / "none"))
    folder, in_json = run("postmortem", str(tmp_path)), run("postmortem", "--json", str(tmp_path))
    assert no_box == (1, "", f"memtools postmortem: {other} is no black box of memtools\n")
    assert nothing[0] == 1
    assert "No such file" in nothing[2]
    assert folder[0] == 1
    assert folder[2].endswith(f"memtools postmortem: there is no black box in {tmp_path}\n")
    assert in_json[:2] == (1, "[]\n")


def test_folder_that_will_not_do_is_an_error_of_the_command(run: Run) -> None:
    done = run("run", "--black-box", "/no/such/folder", "-c", "print(1)")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--black-box='/no/such/folder'" in done.stderr


def test_program_sees_no_thread_of_the_recording(run: Run, tmp_path: Path) -> None:
    code = "import threading; print(len(threading.enumerate()), threading.active_count())"
    assert run("run", "--black-box", str(tmp_path), "-c", code).stdout == "1 1\n"


def test_last_words_come_once_for_each_rise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rise = (10, 81, 79, 81, 91, 85, 60, 81)
    figures = iter(rise)
    spoken: list[Level] = []
    ended = threading.Event()

    def take() -> Reading:
        used = next(figures, None)
        if used is None:
            ended.set()
            raise OSError
        return Reading(used, 100, 0.0)

    monkeypatch.setattr(_recording, "take_reading", take)
    monkeypatch.setattr(_recording, "_INTERVAL_S", 0.001)
    monkeypatch.setattr(BlackBox, "write_last_words", lambda _box, _reading, level: spoken.append(level))
    recording = _recording.Recording(str(tmp_path), "program")
    assert ended.wait(TIMEOUT_S)
    recording.close()

    assert spoken == [Level.WARNING, Level.CRITICAL, Level.WARNING]
    (path,) = tmp_path.glob("program.*.box")
    assert [reading.resident_bytes for reading in read_black_box(path).readings] == list(rise)


def test_run_without_room_for_a_box_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert _recording.begin_recording(str(tmp_path), "program") is None
    assert _recording.begin_recording(None, "program") is None
    assert capsys.readouterr().err == "memtools: there is no black box: [Errno 28] No space left on device\n"


class TestPage:
    @pytest.fixture
    def box(self, tmp_path: Path) -> Generator[BlackBox]:
        """The box of this process: memory has become short, and owners have names from requests."""
        with BlackBox(tmp_path, name="shop") as made:
            for number in range(40):
                level = Level.WARNING if number > 30 else Level.NORMAL
                made.observe(Reading((50 + number) * MIB, 100 * MIB, time.monotonic()), level)
            made.write_last_words(Reading(90 * MIB, 100 * MIB, 0.0), Level.WARNING)
            yield made

    @pytest.mark.skipif(bool(native_reason()), reason="only the native ledger writes owners")
    def test_page_has_every_section(self, box: BlackBox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        page = tmp_path / "page.html"
        with memory_scope("service"), memory_scope("<script>alert(1)</script>\x1b[31m"):
            rows = [bytes(MIB) for _ in range(4)]
            assert main(["postmortem", box.path, "--html", str(page)]) == 0
            del rows
        assert capsys.readouterr().out.startswith(f"process {os.getpid()}")  # the text as well

        found = page.read_text("utf-8")
        html5lib.HTMLParser(strict=True).parse(found)
        assert '<p class="say good">the process is alive: its process is there' in found
        for summary in ("Last readings", "Who held what", "Last words", "Threads"):
            assert f"<summary>{summary}" in found
        assert "limit 100.0 MiB" in found
        assert "warning: from normal to warning" in found
        assert "thread MainThread: " in found
        assert re.search(
            r"<tr><th scope=row>service &gt; &lt;script&gt;[^<]*<td>1<td>\d+\.\d\d<td><i style=--l:", found
        )
        assert found.count("<script>") == 1  # its own
        assert "default-src 'none'" in found

    def test_page_goes_to_standard_output(self, box: BlackBox, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["postmortem", box.path, "--html", "-"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("<!doctype html>")
        assert out.endswith("</html>\n")
        html5lib.HTMLParser(strict=True).parse(out)

    def test_page_of_a_folder_names_the_others(self, box: BlackBox, run: Run, tmp_path: Path) -> None:
        run("run", "--black-box", str(tmp_path), "-c", KILLED)
        page = tmp_path / "page.html"
        assert main(["postmortem", str(tmp_path), "--html", str(page)]) == 0
        found = page.read_text("utf-8")
        html5lib.HTMLParser(strict=True).parse(found)
        assert '<p class="say bad">the process was killed' in found
        assert "<summary>Other boxes in this folder</summary>" in found
        assert f"{os.path.basename(box.path)}: process {os.getpid()} is alive" in found

    def test_page_that_cannot_be_written_is_an_error(self, box: BlackBox, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["postmortem", box.path, "--html", "/no/such/page"]) == 1
        assert capsys.readouterr() == (
            "", "memtools postmortem: cannot write /no/such/page: No such file or directory\n",
        )  # fmt: skip

    def test_owners_beyond_the_largest_are_summed(self) -> None:
        holdings = tuple(Holding((f"owner-{number}",), "scope", MIB, 0) for number in range(1_500))
        found = PostMortem(
            "box", "killed", "why", 1, "", "", 0.0, (), 1_500 * MIB, 400 * MIB, holdings, None, "", (), (), "", (),
        )  # fmt: skip
        page = postmortem_page(found)
        html5lib.HTMLParser(strict=True).parse(page)
        assert page.count("<tr><th scope=row>") == 1_000
        assert "500 more names held 500.0 MiB together" in page
        assert "no reading was written" in page
