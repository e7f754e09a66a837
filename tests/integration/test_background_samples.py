"""The samples of a program under `memtools run --html`."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memtools.commands._background_samples import BackgroundSamples, Sample, merged_by_pairs
from memtools.errors import ReadingError

MIB = 2**20


@pytest.fixture
def no_hooks(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """Where the hooks around forks go, which could not be removed again."""
    hooks: dict[str, list[object]] = {}
    monkeypatch.setattr(
        os, "register_at_fork", lambda **given: [hooks.setdefault(k, []).append(v) for k, v in given.items()]
    )
    return hooks


def _wait_for(samples: BackgroundSamples, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(samples._samples) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_samples_have_the_growth_between_them(no_hooks: object) -> None:
    samples = BackgroundSamples(0.005)
    samples.start()
    _wait_for(samples, 3)
    block = bytearray(b"x") * (64 * MIB)
    _wait_for(samples, len(samples._samples) + 3)

    timeline = samples.stop()

    assert timeline.samples[-1].highest_bytes - timeline.samples[0].lowest_bytes > 48 * MIB
    assert [one.at_s for one in timeline.samples] == sorted(one.at_s for one in timeline.samples)
    del block


def test_thread_is_unknown_to_threading_and_ends(no_hooks: object) -> None:
    before = set(sys._current_frames())
    samples = BackgroundSamples(0.005)
    names = [thread.name for thread in threading.enumerate()]

    samples.start()
    _wait_for(samples, 1)
    assert [thread.name for thread in threading.enumerate()] == names
    assert len(set(sys._current_frames()) - before) == 1
    samples.stop()

    assert set(sys._current_frames()) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_thread_rests_around_a_fork(no_hooks: dict[str, list[object]]) -> None:
    before = set(sys._current_frames())
    samples = BackgroundSamples(0.005)
    samples.start()
    pause, resume = no_hooks["before"][0], no_hooks["after_in_parent"][0]
    assert callable(pause)
    assert callable(resume)

    pause()
    assert set(sys._current_frames()) == before
    count = len(samples._samples)
    resume()
    _wait_for(samples, count + 2)
    resume()  # a second time, as when the fork has failed
    assert len(set(sys._current_frames()) - before) == 1

    samples.stop()
    pause()
    resume()
    assert set(sys._current_frames()) == before


def test_samples_stay_bounded_and_keep_their_extremes(no_hooks: object, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter(range(1, 10_000))
    monkeypatch.setattr("memtools.commands._background_samples.resident_bytes", lambda: next(sizes))
    samples = BackgroundSamples(60.0)
    for _ in range(5_000):
        samples._sample()

    timeline = samples.stop()

    assert 512 <= len(timeline.samples) < 1024
    assert sum(one.count for one in timeline.samples) == 5_001
    assert timeline.samples[0].lowest_bytes == 1
    assert timeline.samples[-1].highest_bytes == 5_001
    assert samples._interval_s > 60.0


def test_pairs_are_merged_by_their_counts() -> None:
    one, other, last = (
        Sample(1.0, 0.5, 3, 5, 10, 20),
        Sample(2.0, 0.75, 1, 2, 30, 90),
        Sample(3.0, 0.0, 1, 7, 7, 7),
    )

    assert merged_by_pairs([one, other, last]) == [Sample(1.0, 1.75, 4, 2, 15, 90), last]


def test_refused_reading_is_left_out(no_hooks: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise ReadingError(24, "no descriptor is left")

    monkeypatch.setattr("memtools.commands._background_samples.resident_bytes", refuse)
    samples = BackgroundSamples(60.0)
    samples.start()

    assert samples.stop().samples == ()


def test_program_without_threads_left_has_no_thread(no_hooks: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("memtools.commands._background_samples.start_new_thread", refuse)
    samples = BackgroundSamples(60.0)
    samples.start()

    assert len(samples.stop().samples) == 1


PROGRAM = """
import os, sys, threading, time, warnings
warnings.simplefilter("error")
{shadow}
keep = [bytes(1000) for _ in range(60_000)]
for _ in range(20):
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.01)
print(threading.active_count(), len(keep))
"""


GREEN = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, os, threading
pid = os.fork()
if not pid:
    os._exit(0)
os.waitpid(pid, 0)
done = []
gevent.spawn(lambda: [gevent.sleep(0.01) or done.append(1) for _ in range(20)]).join(timeout=20)
print(len(done))
"""


@pytest.mark.once
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_greenlets_are_not_held_up_after_a_fork(tmp_path: Path) -> None:
    pytest.importorskip("gevent")
    (tmp_path / "program.py").write_text(GREEN)
    command = [sys.executable, "-m", "memtools", "run", "--html", "page.html", "program.py"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)

    assert done.stdout == "20\n", done.stderr
    assert "Resident memory" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_page_of_a_program_that_forks_has_its_timeline(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(shadow="import hashlib, platform, html"))
    for name in ("hashlib", "platform", "html", "socket"):
        (tmp_path / f"{name}.py").write_text("MINE = True\n")
    command = [sys.executable, "-m", "memtools", "run", "--html", "page.html", "--json", "report.json", "program.py"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)

    assert done.stdout == "1 60000\n"
    assert done.returncode == 0
    assert "Warning" not in done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<summary>Resident memory <small>" in page
    assert "<summary>Objects by type" in page
    assert re.search(r"<dt>command<dd>\S*python", page)
    assert "program.keep" in page or "keep" in page
    identity = json.loads((tmp_path / "report.json").read_text())["identity"]
    assert set(identity) >= {"process", "versions", "command"}
