"""Questions to a live process by the mailbox of its box: asked, answered, refused, and what may be wrong with them."""

import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memtools import memory_scope
from memtools.black_box import BlackBox, _answers, _mailbox
from memtools.black_box._folder import box_of_process, claim_killed
from memtools.black_box._layout import HEADER, MAILBOX_AT, QUESTION, STANDING_AT, with_checksum
from memtools.black_box._mailbox import NoAnswer, answer_path, ask
from memtools.ledger import native_reason

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no black boxes on Windows")

KEPT: list[object] = []
TIMEOUT_S = 60


@pytest.fixture
def box(tmp_path: Path) -> Iterator[BlackBox]:
    with BlackBox(tmp_path, name="service") as opened:
        opened.look_for_question()
        yield opened


def ask_box(box: BlackBox, word: str, seconds: float = 0.0, **options: Any) -> dict[str, Any]:
    """Ask a box of this process, which looks each time that `ask` sleeps."""

    def look(pause_s: float) -> None:
        box.look_for_question(report=lambda: "the report\nsecond line")
        time.sleep(pause_s)

    return ask(box.path, word, seconds, **{"timeout_s": TIMEOUT_S, "sleep": look} | options)


def write(path: str, at: int, packed: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, packed, at)
    os.close(fd)


def question_in(path: str) -> bytes:
    return Path(path).read_bytes()[MAILBOX_AT : MAILBOX_AT + QUESTION.size]


def pack_question(number: int, word: bytes = b"report", seconds: float = 0.0) -> bytes:
    return with_checksum(QUESTION.pack(0, seconds, number, word))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestAnswers:
    def test_report_is_what_the_monitor_says(self, box: BlackBox) -> None:
        answer = ask_box(box, "report")

        assert answer["lines"] == ["the report", "second line"]
        assert answer["word"] == "report"
        assert answer["used_bytes"] > 0

    def test_heap_names_what_grows_and_what_is_largest(self, box: BlackBox, monkeypatch: pytest.MonkeyPatch) -> None:
        # Made here: what is older than the test is hidden from the walks of its heap.
        monkeypatch.setattr(sys.modules[__name__], "KEPT", [bytes(4000) for _ in range(5000)])

        def look_and_grow(pause_s: float) -> None:
            box.look_for_question()
            KEPT.extend(bytes(4000) for _ in range(50))
            time.sleep(pause_s)

        answer = ask_box(box, "heap", 0.3, sleep=look_and_grow)

        name = f"{__name__}.KEPT"
        assert any(f"list {name} +" in text for text in answer["found"]["growing"])
        assert any(each["name"] == f"list {name}" and each["items"] >= 5000 for each in answer["found"]["largest"])
        assert any(line.startswith(f"largest: list {name}, ") for line in answer["lines"])

    @pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
    def test_owners_tell_what_each_call_has_left(self, box: BlackBox) -> None:
        kept: list[bytes] = []

        def look_and_work(pause_s: float) -> None:
            box.look_for_question()
            with memory_scope("POST /orders"):
                kept.append(bytes(10_000))
            time.sleep(pause_s)

        answer = ask_box(box, "owners", 0.3, sleep=look_and_work)

        (orders,) = (each for each in answer["found"]["owners"] if each["name"] == "POST /orders")
        assert orders["calls"] > 0
        assert 10_000 <= orders["per_call_bytes"] < 11_000
        assert orders["change_bytes"] >= 10_000
        assert any("POST /orders holds" in line and "each has left 9.8 KiB" in line for line in answer["lines"])

    def test_leaks_are_those_of_an_investigation(self, box: BlackBox, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[float] = []

        class Diagnosis:
            def lines(self) -> tuple[str, ...]:
                return ("no leak",)

            def to_dict(self) -> dict[str, object]:
                return {"leaks": []}

        def investigate(*, duration: float, wait: object) -> Diagnosis:
            asked.append(duration)
            return Diagnosis()

        monkeypatch.setattr(_answers, "investigate", investigate)
        answer = ask_box(box, "leaks", 2.0)

        assert (answer["lines"], answer["found"]) == (["no leak"], {"leaks": []})
        assert asked == [6.0]

    def test_heap_is_not_counted_without_room_for_it(self, box: BlackBox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_answers, "may_count", lambda _: False)

        assert ask_box(box, "heap")["lines"] == [
            "too little memory is left to count the heap, or it has too many objects"
        ]

    def test_answer_is_made_in_a_thread_of_its_own(self, box: BlackBox) -> None:
        threads: list[str] = []

        def report() -> str:
            threads.append(threading.current_thread().name)
            return ""

        ask_box(box, "report", sleep=lambda _: (box.look_for_question(report=report), time.sleep(0.01)))
        assert threads == ["memtools-attach"]


class TestRefusals:
    def test_unknown_word_is_refused(self, box: BlackBox) -> None:
        with pytest.raises(NoAnswer, match="this process does not know that question"):
            ask_box(box, "os.system")

    def test_report_is_refused_where_there_is_none(self, box: BlackBox) -> None:
        with pytest.raises(NoAnswer, match="does not know that question"):
            ask_box(box, "report", sleep=lambda _: (box.look_for_question(), time.sleep(0.01)))

    def test_box_without_names_answers_nothing(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path, names=False) as box:
            box.look_for_question()
            with pytest.raises(NoAnswer, match=r"BlackBox\(names=False\) keeps the names"):
                ask_box(box, "owners")

    @pytest.mark.parametrize("error", [ValueError("broken"), MemoryError()])
    def test_failure_of_the_answer_is_told_and_stays_inside(self, box: BlackBox, error: Exception) -> None:
        def report() -> str:
            raise error

        def look(pause_s: float) -> None:
            box.look_for_question(report=report)
            time.sleep(pause_s)

        with pytest.raises(NoAnswer, match=f"it failed: {type(error).__name__}"):
            ask_box(box, "report", sleep=look)

    def test_answer_without_room_on_the_disk_is_told(
        self, box: BlackBox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_mailbox, "_write_answer", refuse)
        with pytest.raises(NoAnswer, match="is there room in"):
            ask_box(box, "report")
        assert "No space left on device" in caplog.text

    def test_answer_that_is_too_long_is_refused(self, box: BlackBox) -> None:
        def look(pause_s: float) -> None:
            box.look_for_question(report=lambda: "x" * 2_000_000)
            time.sleep(pause_s)

        with pytest.raises(NoAnswer, match="the answer is longer than 1,048,576 bytes"):
            ask_box(box, "report", sleep=look)

    def test_thread_that_cannot_start_is_told(self, box: BlackBox, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoAnswer, match="can't start new thread"):
            ask_box(box, "report")


class TestBounds:
    def test_box_that_nothing_looks_at_says_so_at_once(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path) as box, pytest.raises(NoAnswer, match="nothing looks at the mailbox"):
            ask(box.path, "report", 0, timeout_s=TIMEOUT_S)

    def test_monitor_that_does_not_look_is_not_waited_for(self, box: BlackBox) -> None:
        now = [0.0]

        def sleep(pause_s: float) -> None:
            now[0] += pause_s

        with pytest.raises(NoAnswer, match="its monitor did not look"):
            ask(box.path, "report", 100, timeout_s=100, clock=lambda: now[0], sleep=sleep)
        assert 1.0 <= now[0] <= 10.0
        assert question_in(box.path) == bytes(QUESTION.size)

    def test_answer_that_takes_too_long_is_given_up(self, box: BlackBox) -> None:
        now = [0.0]

        def sleep(pause_s: float) -> None:
            box.look_for_question()
            now[0] += pause_s
            time.sleep(0.001)

        with pytest.raises(NoAnswer, match=r"no answer within 3 s; a longer --timeout"):
            ask(box.path, "owners", 2.5, timeout_s=0.5, clock=lambda: now[0], sleep=sleep)
        assert question_in(box.path) == bytes(QUESTION.size)

    def test_end_of_the_program_is_not_waited_for(self, box: BlackBox) -> None:
        with pytest.raises(NoAnswer, match="has ended meanwhile"):
            ask(box.path, "report", 0, timeout_s=TIMEOUT_S, sleep=lambda _: box.close())

    def test_process_that_is_gone_is_not_waited_for(self, box: BlackBox) -> None:
        with pytest.raises(NoAnswer, match="has ended meanwhile"):
            ask(box.path, "report", 0, timeout_s=TIMEOUT_S, is_alive=lambda: False)

    def test_one_question_is_answered_at_a_time(self, box: BlackBox) -> None:
        may_end, calls = threading.Event(), []

        def report() -> str:
            calls.append(1)
            assert may_end.wait(TIMEOUT_S)
            return ""

        write(box.path, MAILBOX_AT, pack_question(7))
        box.look_for_question(report=report)
        write(box.path, MAILBOX_AT, pack_question(9))
        for _ in range(5):
            box.look_for_question(report=report)
        wait_for(lambda: len(calls) == 1)
        may_end.set()
        wait_for(lambda: os.path.exists(answer_path(box.path, 7)))
        box.look_for_question(report=report)  # within a second of the answer
        assert calls == [1]
        wait_for(lambda: bool(box.look_for_question(report=report)) or len(calls) == 2)
        wait_for(lambda: os.path.exists(answer_path(box.path, 9)))

        assert not os.path.exists(answer_path(box.path, 7))  # which nothing has fetched

    def test_second_asker_is_told_of_the_first(self, box: BlackBox) -> None:
        code = (
            "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR)\n"
            f"fcntl.lockf(fd, fcntl.LOCK_EX, {QUESTION.size}, {MAILBOX_AT}); print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, box.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(NoAnswer, match="another process is asking it"):
                ask(box.path, "report", 0, timeout_s=TIMEOUT_S)
            assert other.stdin is not None
            other.stdin.close()
        assert ask_box(box, "report")["word"] == "report"


class TestFiles:
    def test_answer_is_the_users_own_and_goes(self, box: BlackBox, tmp_path: Path) -> None:
        modes: list[int] = []
        read = _mailbox._read_answer

        def look_and_read(path: str, uid: int) -> dict[str, Any]:
            modes.append(stat.S_IMODE(os.stat(path).st_mode))
            return read(path, uid)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_mailbox, "_read_answer", look_and_read)
            ask_box(box, "report")
        assert modes == [0o600]
        assert [path.name for path in tmp_path.iterdir()] == [os.path.basename(box.path)]

    def test_answer_that_nothing_fetches_goes_with_the_box(self, box: BlackBox, tmp_path: Path) -> None:
        write(box.path, MAILBOX_AT, pack_question(11))
        box.look_for_question(report=lambda: "")
        wait_for(lambda: os.path.exists(answer_path(box.path, 11)))

        box.close()
        assert [path.suffix for path in tmp_path.iterdir()] == [".box"]

    def test_answer_that_comes_after_the_end_is_not_written(self, box: BlackBox, tmp_path: Path) -> None:
        has_begun, may_end = threading.Event(), threading.Event()

        def report() -> str:
            has_begun.set()
            assert may_end.wait(TIMEOUT_S)
            return ""

        write(box.path, MAILBOX_AT, pack_question(11))
        box.look_for_question(report=report)
        assert has_begun.wait(TIMEOUT_S)
        box.close()
        may_end.set()
        wait_for(lambda: all(thread.name != "memtools-attach" for thread in threading.enumerate()))
        assert [path.suffix for path in tmp_path.iterdir()] == [".box"]

    def test_answers_of_killed_programs_go_at_the_next_start(self, tmp_path: Path) -> None:
        old = tmp_path / ".service.1.1.box.000000000000000b.answer"
        new = tmp_path / ".service.1.1.box.000000000000000c.answer"
        for path in (old, new):
            path.write_text("{}")
        os.utime(old, (1, 1))

        claim_killed(str(tmp_path), "service")
        assert (old.exists(), new.exists()) == (False, True)

    @pytest.mark.parametrize("body", [b"[]", b"\xff", b"{", b"1" * (2 << 20)])
    def test_file_that_is_no_answer_is_refused(
        self, box: BlackBox, monkeypatch: pytest.MonkeyPatch, body: bytes
    ) -> None:
        monkeypatch.setattr(_mailbox, "_write_answer", lambda path, _: Path(path).write_bytes(body))
        with pytest.raises(NoAnswer, match="is not the answer of the process"):
            ask_box(box, "report")

    def test_answer_of_another_user_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "answer"
        path.write_text(json.dumps({"lines": []}))
        with pytest.raises(NoAnswer, match="another user has made it"):
            _mailbox._read_answer(str(path), os.getuid() + 1)

    def test_link_in_the_place_of_an_answer_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "answer").symlink_to("/etc/hostname")
        with pytest.raises(OSError, match="symbolic links"):
            _mailbox._read_answer(str(tmp_path / "answer"), os.getuid())

    def test_link_in_the_place_of_an_answer_is_not_written_through(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        (tmp_path / "answer.part").symlink_to(target)
        with pytest.raises(FileExistsError):
            _mailbox._write_answer(str(tmp_path / "answer"), {})
        assert not target.exists()

    def test_files_that_are_no_boxes_are_refused(self, box: BlackBox, tmp_path: Path) -> None:
        other = tmp_path / "other.box"
        other.write_bytes(b"MEMT")
        os.mkfifo(tmp_path / "pipe.box")
        (tmp_path / "link.box").symlink_to(box.path)
        for path in (other, tmp_path / "pipe.box"):
            with pytest.raises((NoAnswer, OSError)):
                ask(str(path), "report", 0, timeout_s=TIMEOUT_S)
        with pytest.raises(OSError, match="symbolic links"):
            ask(str(tmp_path / "link.box"), "report", 0, timeout_s=TIMEOUT_S)
        write(box.path, 8, b"\x02\0\0\0")
        with pytest.raises(NoAnswer, match="is of version 2, and this memtools knows 1"):
            ask(box.path, "report", 0, timeout_s=TIMEOUT_S)


class TestHostileMailbox:
    def test_garbage_in_the_mailbox_is_passed_over(self, box: BlackBox, tmp_path: Path) -> None:
        chance = random.Random(15)
        for _ in range(300):
            write(box.path, MAILBOX_AT, chance.randbytes(2048))
            box.look_for_question(report=lambda: "")
        assert [path.suffix for path in tmp_path.iterdir()] == [".box"]

    @pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -5.0, 1e30])
    def test_seconds_are_bounded(self, seconds: float) -> None:
        question = _mailbox._parse_question(pack_question(3, seconds=seconds))
        assert question is not None
        assert 0 <= question.seconds <= 600

    def test_word_is_never_part_of_a_path(self, box: BlackBox, tmp_path: Path) -> None:
        write(box.path, MAILBOX_AT, pack_question(3, b"../../../etc/x\0\xff"))
        box.look_for_question(report=lambda: "")
        wait_for(lambda: os.path.exists(answer_path(box.path, 3)))
        assert json.loads(Path(answer_path(box.path, 3)).read_text()) == {
            "refused": "this process does not know that question"
        }

    def test_standing_that_is_damaged_counts_as_none(self, box: BlackBox) -> None:
        write(box.path, STANDING_AT, b"\xff" * 64)
        with pytest.raises(NoAnswer, match="nothing looks at the mailbox"):
            ask(box.path, "report", 0, timeout_s=TIMEOUT_S)
        body = b"\0\0\xc0\x7f" + bytes(56)  # not a number of seconds
        write(box.path, STANDING_AT, zlib.crc32(body).to_bytes(4, "little") + body)
        with pytest.raises(NoAnswer, match="nothing looks at the mailbox"):
            ask(box.path, "report", 0, timeout_s=TIMEOUT_S)

    def test_file_that_was_cut_is_not_made_longer(self, box: BlackBox, caplog: pytest.LogCaptureFixture) -> None:
        os.truncate(box.path, 3000)
        write(box.path, MAILBOX_AT, pack_question(3))
        box.look_for_question(report=lambda: "")
        assert os.path.getsize(box.path) == 3000
        assert "was cut" in caplog.text


class TestBoxOfProcess:
    def test_box_is_found_among_the_open_files(self, box: BlackBox) -> None:
        assert box_of_process(os.getpid()) == box.path

    def test_box_that_has_ended_is_none(self, box: BlackBox) -> None:
        box.close()
        assert box_of_process(os.getpid()) is None

    def test_box_of_the_parent_is_not_that_of_a_child(self, box: BlackBox) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[box._file.fd],  # type: ignore[union-attr]
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            assert box_of_process(child.pid) is None
            assert child.stdin is not None
            child.stdin.close()

    def test_process_that_is_gone_has_none(self) -> None:
        assert box_of_process(2**22 + 1) is None

    def test_box_with_a_foreign_header_is_passed_over(self, box: BlackBox) -> None:
        write(box.path, 0, bytes(HEADER.size))
        assert box_of_process(os.getpid()) is None
