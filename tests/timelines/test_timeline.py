"""The timeline: readings, events, owners, files, CSV."""

import csv
import gc
import io
import json
import os
import threading
from pathlib import Path

import pytest

from memtools.errors import ConfigError
from memtools.timelines import Sample, Timeline, TimelineEvent
from memtools.timelines._timeline import MAX_EVENTS_OF_A_KIND, MAX_KINDS, MAX_OWNERS, MAX_POINTS

MIB = 1 << 20
START = 1_800_000_000.0


def _filled() -> Timeline:
    timeline = Timeline(limit_bytes=512 * MIB)
    for number in range(800):  # the oldest are merged
        timeline.add((100 + number % 7) * MIB, blocks=1000 + number, at_s=START + 5.0 * number)
    timeline.mark("deploy", "version 2", at_s=START + 30)
    timeline.mark("scope", "näme\n> end", at_s=START + 40)
    timeline.add_owners({"/orders/{id}": 5 * MIB, "b": 7}, at_s=START)
    timeline.add_owners({"/orders/{id}": 6 * MIB}, at_s=START + 60)
    return timeline


class TestReadings:
    def test_sample_has_what_was_added(self) -> None:
        timeline = Timeline()
        timeline.add(5 * MIB, blocks=7, at_s=START)

        assert timeline.samples == (Sample(START, 0.0, 1, 5 * MIB, 5 * MIB, 5 * MIB, 7),)
        assert timeline.samples[0].to_dict()["blocks"] == 7

    def test_reading_without_a_time_is_taken_now(self) -> None:
        timeline = Timeline()
        timeline.add(1)
        timeline.add(1)

        first, second = timeline.samples
        assert START - 10**9 < first.at_s <= second.at_s

    def test_clock_that_was_set_back_stands_still(self) -> None:
        timeline = Timeline()
        timeline.add(1, at_s=START)
        timeline.add(2, at_s=START - 3600)

        assert [one.at_s for one in timeline.samples] == [START, START]

    @pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), 2**53, True])
    def test_figure_that_makes_no_sense_is_refused(self, wrong: int) -> None:
        timeline = Timeline()
        with pytest.raises(ConfigError, match="used_bytes"):
            timeline.add(wrong, at_s=START)
        with pytest.raises(ConfigError, match="blocks"):
            timeline.add(1, blocks=wrong, at_s=START)
        with pytest.raises(ConfigError, match="limit_bytes"):
            Timeline(limit_bytes=wrong)
        assert timeline.samples == ()

    def test_time_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="at_s"):
            Timeline().add(1, at_s=float("nan"))

    def test_change_of_the_limit_is_an_event(self) -> None:
        timeline = Timeline()
        for limit in (512 * MIB, 512 * MIB, 1024 * MIB):
            timeline.add(1, at_s=START, limit_bytes=limit)

        assert timeline.limit_bytes == 1024 * MIB
        assert [event.text for event in timeline.events] == ["the limit changed from 512.0 MiB to 1.0 GiB"]

    @pytest.mark.once
    def test_three_weeks_of_readings_stay_below_a_mebibyte(self) -> None:
        timeline = Timeline()
        number = 21 * 1440
        for minute in range(number):
            timeline.add(100 * MIB + minute, at_s=START + 60.0 * minute)

        samples = timeline.samples
        taken = sum(tier.rows.buffer_info()[1] * tier.rows.itemsize for tier in timeline._series.tiers)
        assert taken < MIB
        assert sum(one.count for one in samples) == number
        assert len(samples) > 10_000  # a week of minutes is whole
        assert samples[-1].highest_bytes == 100 * MIB + number - 1

    def test_readings_of_many_threads_are_all_counted(self) -> None:
        timeline = Timeline()

        def add() -> None:
            for _ in range(500):
                timeline.add(1, at_s=START)

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(one.count for one in timeline.samples) == 2000

    def test_reading_of_a_finaliser_in_the_middle_is_kept(self) -> None:
        timeline = Timeline()
        add_row = timeline._add_row

        def interrupted(row: tuple[float, ...]) -> None:
            if row[3] == 1.0:
                timeline.add(2, at_s=START + 1)  # as a finaliser would
                assert timeline.samples == ()
            add_row(row)

        timeline._add_row = interrupted
        timeline.add(1, at_s=START)

        assert [one.lowest_bytes for one in timeline.samples] == [1, 2]


class TestEvents:
    def test_events_are_sorted_by_their_time(self) -> None:
        timeline = Timeline()
        timeline.mark("scope", "b", at_s=START + 1)
        timeline.mark("deploy", "a", at_s=START)

        assert timeline.events == (TimelineEvent(START, "deploy", "a"), TimelineEvent(START + 1, "scope", "b"))
        assert timeline.events[0].to_dict() == {"at_s": START, "kind": "deploy", "text": "a"}

    def test_flood_of_one_kind_keeps_the_others(self) -> None:
        timeline = Timeline()
        timeline.mark("deploy", at_s=START)
        for number in range(1000):
            timeline.mark("collection", at_s=START + number)

        kinds = [event.kind for event in timeline.events]
        assert kinds.count("deploy") == 1
        assert kinds.count("collection") == MAX_EVENTS_OF_A_KIND

    def test_many_kinds_become_other(self) -> None:
        timeline = Timeline()
        for number in range(100):
            timeline.mark(f"kind {number}", at_s=START)

        kinds = {event.kind for event in timeline.events}
        assert len(kinds) == MAX_KINDS + 1
        assert "other" in kinds

    def test_text_is_cut_and_made_printable(self) -> None:
        timeline = Timeline()
        timeline.mark("deploy", "\x1b[31m" + "x" * 1000)

        (event,) = timeline.events
        assert event.text.startswith("\\x1b[31m")
        assert len(event.text) < 220

    def test_event_without_a_kind_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="kind"):
            Timeline().mark("  ")


class TestOwners:
    def test_points_of_an_owner_are_in_order(self) -> None:
        assert _filled().owners["/orders/{id}"] == ((START, 5 * MIB), (START + 60, 6 * MIB))

    def test_number_of_points_is_bounded_and_keeps_the_lowest(self) -> None:
        timeline = Timeline()
        for number in range(5000):
            timeline.add_owners({"a": 1000 + number % 2 * 500}, at_s=START + 60.0 * number)

        points = timeline.owners["a"]
        assert MAX_POINTS // 4 < len(points) <= MAX_POINTS
        assert points[0][0] == START
        assert points[-1][0] > START + 60.0 * 4800
        assert {live for _, live in points[:-1]} == {1000}

    def test_largest_owners_replace_the_smallest(self) -> None:
        timeline = Timeline()
        timeline.add_owners({f"owner {number}": 100 + number for number in range(100)}, at_s=START)
        timeline.add_owners({"late and large": 10**6, "late and small": 1}, at_s=START + 60)

        owners = timeline.owners
        assert len(owners) == MAX_OWNERS
        assert "late and large" in owners
        assert "late and small" not in owners
        assert "owner 68" not in owners  # the smallest of the 32 largest
        assert "owner 99" in owners

    def test_owner_with_a_figure_that_makes_no_sense_is_refused(self) -> None:
        timeline = Timeline()
        with pytest.raises(ConfigError, match="live_bytes"):
            timeline.add_owners({"a": 1, "b": 2**60})
        assert timeline.owners == {}


class TestFiles:
    def test_saved_timeline_loads_as_it_was(self, tmp_path: Path) -> None:
        saved = _filled()
        saved.save(tmp_path / "timeline.jsonl")

        loaded = Timeline.load(tmp_path / "timeline.jsonl")

        assert (loaded.samples, loaded.events, loaded.owners) == (saved.samples, saved.events, saved.owners)
        assert loaded.limit_bytes == saved.limit_bytes
        loaded.add(1, at_s=START + 10_000)
        assert sum(one.count for one in loaded.samples) == 801
        assert os.listdir(tmp_path) == ["timeline.jsonl"]

    @pytest.mark.once
    def test_file_cut_at_every_byte_loads_its_whole_lines(self, tmp_path: Path) -> None:
        saved = Timeline(limit_bytes=512 * MIB)
        for number in range(6):
            saved.add(number, blocks=None if number % 2 else 5, at_s=START + number)
        saved.mark("deploy", "é\n", at_s=START)
        saved.add_owners({"a": 1}, at_s=START)
        path = tmp_path / "timeline.jsonl"
        saved.save(path)
        whole = path.read_bytes()

        for length in range(len(whole) + 1):
            path.write_bytes(whole[:length])
            loaded = Timeline.load(path)
            lines = whole[:length].count(b"\n")
            samples = max(0, min(6, lines - 1))
            assert loaded.samples == saved.samples[:samples], length
            assert len(loaded.events) == (lines > 7), length
            assert len(loaded.owners) == (lines > 8), length

    @pytest.mark.parametrize(
        "text", ["hello\n", "[1]\n", '{"format":"x"}\n', '{"format":"memtools timeline","version":2}\n']
    )
    def test_file_that_is_no_timeline_is_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "other"
        path.write_text(text)
        with pytest.raises(ConfigError, match="path"):
            Timeline.load(path)

    @pytest.mark.parametrize(
        "line",
        [
            "[]",
            "{}",
            '["sample",0,1,2]',
            '["sample",0,1.0,0.0,0,1,1,1,-1]',
            '["sample",0,1.0,0.0,1,5,1,1,-1]',
            '["sample",0,NaN,0.0,1,1,1,1,-1]',
            '["event",1.0,"",""]',
            '["event","x","deploy",""]',
            '["owner",5]',
            '["owner","a",[1]]',
            '["owner","a",[1,-5]]',
            '["unknown"]',
        ],
    )
    def test_line_that_makes_no_sense_ends_the_timeline(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "torn"
        head, good = '{"format":"memtools timeline","version":1,"limit_bytes":-3}', '["event",1.0,"deploy",""]'
        path.write_text(f"{head}\n{good}\n{line}\n{good}\n")

        loaded = Timeline.load(path)

        assert (len(loaded.events), loaded.samples, loaded.owners, loaded.limit_bytes) == (1, (), {}, None)

    def test_failed_save_leaves_the_old_file_and_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "timeline.jsonl"
        _filled().save(path)
        before = path.read_bytes()

        def fail(source: object, target: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            Timeline().save(path)

        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["timeline.jsonl"]

    def test_missing_file_is_an_error_of_the_system(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Timeline.load(tmp_path / "missing")

    def test_lines_are_json(self, tmp_path: Path) -> None:
        _filled().save(tmp_path / "t")

        lines = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()]
        assert lines[0]["format"] == "memtools timeline"
        assert {line[0] for line in lines[1:]} == {"sample", "event", "owner"}


def test_csv_has_a_line_for_each_sample() -> None:
    timeline = _filled()
    timeline.add(3, at_s=START + 10_000)

    rows = list(csv.DictReader(io.StringIO(timeline.to_csv())))

    assert len(rows) == len(timeline.samples)
    assert rows[0]["count"] == str(timeline.samples[0].count)
    assert (rows[-1]["mean_bytes"], rows[-1]["blocks"]) == ("3", "")


def test_repr_says_how_much_it_has() -> None:
    assert repr(Timeline(limit_bytes=MIB)) == "<Timeline 0 samples, limit 1.0 MiB>"
    assert repr(Timeline()) == "<Timeline 0 samples, no limit known>"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_goes_on_while_the_parent_holds_the_lock() -> None:
    timeline = Timeline()
    timeline.add(1, at_s=START)
    gc.collect()
    with timeline._lock:
        holder = threading.Thread(target=timeline._rows)  # waits for the lock
        holder.start()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                timeline.add(2, at_s=START + 1)
                code = 0 if len(timeline.samples) == 2 else 1
            finally:
                os._exit(code)
    holder.join()
    assert os.waitpid(pid, 0)[1] == 0
