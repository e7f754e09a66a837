"""A monitor's black box: when it is there, what is written, and what a monitor does that cannot have one."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memtools.black_box import BlackBox, PostMortem, read_black_box
from memtools.black_box._mailbox import ask
from memtools.config import Config
from memtools.errors import ConfigError
from memtools.monitor import MemoryMonitor
from memtools.readings import Level, Reading

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no black boxes on Windows")

MIB = 2**20

Make = Callable[..., MemoryMonitor]


def box_in(folder: Path) -> PostMortem:
    (path,) = folder.glob("*.box")
    return read_black_box(path)


def test_box_lasts_from_start_to_stop_of_the_monitor(make: Make, tmp_path: Path) -> None:
    monitor = make(black_box=tmp_path)
    assert list(tmp_path.iterdir()) == []

    with monitor:
        monitor.check()
        assert box_in(tmp_path).verdict == "alive"

    found = box_in(tmp_path)
    assert found.verdict == "ended"
    assert found.readings[-1].resident_bytes == 100 * MIB
    assert found.readings[-1].limit_bytes == 1000 * MIB


def test_box_of_a_task_ends_with_it(make: Make, tmp_path: Path) -> None:
    async def main() -> None:
        async with make(black_box=str(tmp_path)):
            assert box_in(tmp_path).verdict == "alive"

    asyncio.run(main())
    assert box_in(tmp_path).verdict == "ended"


def test_last_words_are_written_once_for_each_level_up(
    make: Make, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Level] = []
    write = BlackBox.write_last_words

    def write_and_note(box: BlackBox, reading: Reading, level: Level, **more: Any) -> None:
        write(box, reading, level, **more)
        written.append(level)

    monkeypatch.setattr(BlackBox, "write_last_words", write_and_note)
    words: list[str] = []
    with make(black_box=tmp_path, max_interval=60.0, min_interval=50.0) as monitor:
        for used, levels in ((100, 0), (700, 1), (710, 1), (900, 2)):
            machine.raise_to(monitor, used)
            deadline = time.monotonic() + 30  # the sampling loop may be the one that acts
            while len(written) < levels and time.monotonic() < deadline:
                time.sleep(0.01)
            words.append(box_in(tmp_path).last_words)

    assert written == [Level.WARNING, Level.CRITICAL]
    assert words[0] == ""
    assert "warning: 700.0 MiB of 1000.0 MiB" in words[1]
    assert words[2] == words[1]
    assert "critical: 900.0 MiB of 1000.0 MiB" in words[3]
    assert "growing since the first warning" in words[3]
    assert box_in(tmp_path).readings[-1].level == Level.CRITICAL


async def test_loop_runs_on_while_last_words_are_written(
    make: Make, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    has_begun = threading.Event()

    def write(_box: BlackBox, _reading: Reading, _level: Level, **_more: Any) -> None:
        has_begun.set()
        assert may_end.wait(20)

    monkeypatch.setattr(BlackBox, "write_last_words", write)
    async with make(black_box=tmp_path, min_interval=0.01, max_interval=0.01):
        machine.used = 700 * MIB
        async with asyncio.timeout(20):
            while not has_begun.is_set():  # noqa: ASYNC110  # a thread sets it
                await asyncio.sleep(0.01)
        may_end.set()  # by the loop, which would else be held up


def test_check_does_not_wait_for_last_words(
    make: Make, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    has_ended = threading.Event()

    def write(_box: BlackBox, _reading: Reading, _level: Level, **_more: Any) -> None:
        assert may_end.wait(20)
        has_ended.set()

    monkeypatch.setattr(BlackBox, "write_last_words", write)
    with make(black_box=tmp_path, min_interval=50.0, max_interval=60.0) as monitor:
        machine.raise_to(monitor, 700)
        may_end.set()
        assert has_ended.wait(20)


class TestQuestions:
    """The monitor looks at the mailbox once a second, however far apart its samples are."""

    def test_thread_answers_between_two_samples(self, make: Make, machine: Any, tmp_path: Path) -> None:
        with make(black_box=tmp_path, min_interval=50.0, max_interval=60.0) as monitor:
            samples = monitor.statistics().samples
            answer = ask(box_in(tmp_path).path, "report", 0, timeout_s=20)
            assert answer["lines"][0].startswith("monitor: NORMAL for")
            assert monitor.statistics().samples <= samples + 1  # that of the report itself

    async def test_task_answers_between_two_samples(self, make: Make, tmp_path: Path) -> None:
        async with make(black_box=tmp_path, min_interval=50.0, max_interval=60.0):
            answer = await asyncio.to_thread(ask, box_in(tmp_path).path, "report", 0, timeout_s=20)
        assert answer["lines"][0].startswith("monitor: NORMAL for")
        assert len(os.listdir(tmp_path)) == 1

    async def test_loop_runs_on_while_the_answer_is_made(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        has_begun, may_end = threading.Event(), threading.Event()

        async with make(black_box=tmp_path, min_interval=50.0, max_interval=60.0) as monitor:

            def report() -> str:
                has_begun.set()
                assert may_end.wait(20)
                return "done"

            monkeypatch.setattr(monitor._engine, "report", report)
            asked = asyncio.create_task(asyncio.to_thread(ask, box_in(tmp_path).path, "report", 0, timeout_s=20))
            async with asyncio.timeout(20):
                while not has_begun.is_set():  # noqa: ASYNC110  # a thread sets it
                    await asyncio.sleep(0.01)
            may_end.set()  # by the loop, which would else be held up
            assert (await asked)["lines"] == ["done"]

    def test_monitor_without_a_box_looks_at_nothing(self, make: Make) -> None:
        with make() as monitor:
            assert monitor._engine.look() == float("inf")


def test_report_names_the_box_while_there_is_one(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = make(black_box=tmp_path)
    assert "black box" not in monitor.report()
    with monitor:
        (path,) = tmp_path.glob("*.box")
        assert f"black box: {path} (" in monitor.report()
    monkeypatch.setattr(BlackBox, "counts_owners", False)
    with monitor:
        assert "readings and last words only" in monitor.report()
        monkeypatch.setattr(BlackBox, "path", "")
        assert f"black box: there is none, it could not be made in {tmp_path}" in monitor.report()


def test_environment_names_the_folder(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTOOLS_BLACK_BOX", str(tmp_path))
    with make():
        assert box_in(tmp_path).verdict == "alive"
    assert Config.from_env().monitor() == {"black_box": str(tmp_path)}


def test_argument_is_stronger_than_the_environment(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTOOLS_BLACK_BOX", str(tmp_path))
    with make(black_box=False):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["/no/such/folder", 3, ""])
def test_folder_that_will_not_do_is_refused_at_once(make: Make, value: object) -> None:
    with pytest.raises(ConfigError, match="black_box="):
        make(black_box=value)


@pytest.mark.parametrize("value", ["", " ", 3])
def test_config_refuses_what_is_no_path(value: object) -> None:
    with pytest.raises(ConfigError, match="black_box="):
        Config(black_box=value)  # type: ignore[arg-type]


def test_monitor_runs_without_a_box_that_cannot_be_made(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with make(black_box=tmp_path) as monitor:
        assert monitor.check().used_bytes == 100 * MIB
    assert "there is no black box: [Errno 28] No space left on device" in caplog.text
