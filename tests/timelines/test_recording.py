"""Sampling for a timeline, from a thread and from a task."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable

import pytest

from memtools import memory_scope
from memtools.errors import ConfigError, ReadingError
from memtools.events import CleanupEnded, HighUsage, LevelChanged, ReclaimIneffective, emit
from memtools.readings import Level, Reading
from memtools.timelines import Timeline, _recording
from memtools.timelines._recording import describe_event, live_by_owner


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_thread_samples_until_its_block_ends() -> None:
    with Timeline().record(interval=0.005) as timeline:
        _wait_for(lambda: len(timeline.samples) >= 4)
    number = len(timeline.samples)

    assert all(one.lowest_bytes > 1 << 20 for one in timeline.samples)
    assert all(one.blocks for one in timeline.samples)
    assert timeline.limit_bytes
    assert "memtools-timeline" not in {thread.name for thread in threading.enumerate()}
    time.sleep(0.02)
    assert len(timeline.samples) == number


async def test_task_samples_until_its_block_ends() -> None:
    async with Timeline().record(interval=0.005) as timeline:
        for _ in range(2000):
            await asyncio.sleep(0.005)
            if len(timeline.samples) >= 4:
                break

    assert len(timeline.samples) >= 4

    assert "memtools-timeline" not in {task.get_name() for task in asyncio.all_tasks()}


def test_block_that_ends_at_once_has_a_reading_of_each_end() -> None:
    with Timeline().record(interval=60) as timeline:
        pass

    assert len(timeline.samples) == 2


def test_recording_marks_scopes_collections_and_clean_ups() -> None:
    with Timeline().record(interval=60) as timeline:
        with memory_scope("nightly", meter="rss"):
            pass
        gc.collect()
        emit(CleanupEnded(Level.WARNING, 5 << 20, 3 << 20, (("collect", None, 0.1),), 0.1))

    events = {event.kind: event.text for event in timeline.events}
    assert events["scope"].startswith("nightly ended: peak ")
    assert events["collection"].endswith("objects collected")
    assert events["cleanup"] == "collect: 2.0 MiB given back"


def test_recording_leaves_no_hook_behind() -> None:
    before = list(gc.callbacks)
    with pytest.raises(ZeroDivisionError), Timeline().record(interval=60):
        1 / 0  # noqa: B018

    assert gc.callbacks == before


def test_recording_can_be_entered_once_at_a_time() -> None:
    recording = Timeline().record(interval=60)
    with recording, pytest.raises(ConfigError, match="timeline"):
        recording.__enter__()
    with recording as timeline:
        assert timeline.samples


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), "x"])
def test_interval_that_makes_no_sense_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match="interval"):
        Timeline().record(interval=wrong)


def test_refused_reading_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> int:
        raise ReadingError("resident")

    monkeypatch.setattr(_recording, "resident_bytes", refuse)
    with caplog.at_level(logging.WARNING, "memtools.timelines"), Timeline().record(interval=60) as timeline:
        pass

    assert timeline.samples == ()
    assert len(caplog.records) == 1


def test_thread_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="start"), Timeline().record():
        pass


class TestDescriptions:
    def test_change_of_level_is_an_alarm(self) -> None:
        change = LevelChanged(Level.NORMAL, Level.WARNING, Reading(5 << 20, None, 0.0), 4 << 20)

        assert describe_event(change) == ("alarm", "NORMAL to WARNING at 5.0 MiB")

    def test_clean_up_without_effect_is_an_alarm(self) -> None:
        event = ReclaimIneffective(Level.CRITICAL, 5 << 20, 4 << 20, ())

        assert describe_event(event) == ("alarm", "clean-up did not help: 5.0 MiB in use")

    def test_other_events_are_not_shown(self) -> None:
        assert describe_event(HighUsage("a", "call", 1, 1, ())) is None


def test_live_bytes_are_by_path_and_absent_without_a_meter() -> None:
    with memory_scope("outer", meter="rss"):
        pass
    from memtools.ledger import statistics

    assert "outer" not in live_by_owner(statistics().accounts)
