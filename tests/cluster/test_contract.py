"""What every carrier holds, between real processes: each lease is counted, and comes back however it ends."""

import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

UNIT = 32 * 2**20  # what each process uses by itself is little beside it
BUDGET = 100 * UNIT  # 95 of them can be leased
TTL_S = 2.0
WORKERS = 8
LARGEST = 25 * UNIT  # that a worker leases at once
PIECE = 50  # operations after which a worker answers

Member = Any  # these are classes of conftest.py, which is not imported
Place = Any
MakeMember = Callable[..., Member]


@pytest.fixture
def member(member: MakeMember) -> MakeMember:
    """Start a process that joins the pool, with its budget."""
    return functools.partial(member, budget=BUDGET, ttl_s=TTL_S)


def _waits_until(holds: Callable[[], object], *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _work_and_kill(member: MakeMember, operations: int) -> Counter[str]:
    """Let processes do so many operations each, and kill one of them from time to time: another one goes on."""
    kills, pauses_s = (3, (0.2, 0.4)) if operations < 1000 else (1_000_000, (1.0, 6.0))
    done: Counter[str] = Counter()
    left = [operations] * WORKERS
    workers = [member(name=str(number)) for number in range(WORKERS)]
    for each in workers:
        each.begin("work", PIECE, LARGEST)
    end = time.monotonic() + 60 + operations / 5
    next_kill = time.monotonic() + 0.5
    while busy := {workers[number].process.stdout: number for number in range(WORKERS) if left[number]}:
        assert time.monotonic() < end, done
        for stream in select.select(list(busy), [], [], 0.05)[0]:
            number = busy[stream]
            done.update(workers[number].answer())
            done["operations"] += PIECE
            left[number] -= PIECE
            workers[number].begin(*(("work", PIECE, LARGEST) if left[number] else ("give_all",)))
        if time.monotonic() >= next_kill and done["killed"] < kills and any(left):
            number = random.choice([number for number in range(WORKERS) if left[number]])
            workers[number].kill()
            workers[number] = member(name=str(number))
            workers[number].begin("work", PIECE, LARGEST)
            done["killed"] += 1
            next_kill = time.monotonic() + random.uniform(*pauses_s)
    return done


class TestBudget:
    """No more is leased than the budget without its reserve."""

    def test_what_does_not_fit_waits_for_what_is_given_back(self, member: MakeMember) -> None:
        first, second = member(), member()

        assert first.do("take", "a", 60 * UNIT, 1)["fence"]
        assert "the pool uses" in second.do("take", "b", 60 * UNIT, 0)["refused"]
        second.begin("take", "b", 60 * UNIT, 20)
        time.sleep(0.2)
        first.do("give", "a")

        assert second.answer()["fence"]
        assert first.do("statistics")["leased_bytes"] == 60 * UNIT

    def test_memory_in_use_counts_where_it_is_more_than_the_lease(self, member: MakeMember) -> None:
        first = member()
        first.do("take", "a", 1000, 1)
        (node,) = first.do("nodes")

        found = first.do("statistics")

        assert node["used_bytes"] > 10 * 2**20
        assert found["used_bytes"] == pytest.approx(node["used_bytes"], rel=0.2)

    def test_other_budget_is_refused_while_the_pool_is_in_use(self, member: MakeMember) -> None:
        first, second = member(), member(budget=2 * BUDGET)
        first.do("statistics")

        refused = second.do("take", "a", UNIT, 1)["error"]
        first.do("close")

        assert refused.startswith("ConfigError")
        assert str(BUDGET) in refused
        assert str(2 * BUDGET) in refused
        assert second.do("take", "a", UNIT, 1)["fence"]

    def test_fences_rise(self, member: MakeMember) -> None:
        first, second = member(), member()

        fences = [each.do("take", str(number), UNIT, 1)["fence"] for number in range(4) for each in (first, second)]

        numbers = [int(fence.rpartition(":")[2]) for fence in fences]
        assert numbers == sorted(set(numbers))

    @pytest.mark.parametrize("operations", [150, pytest.param(10_000, marks=pytest.mark.skipif(
        "CLUSTER_OPERATIONS" not in os.environ, reason="takes minutes: set CLUSTER_OPERATIONS"))])  # fmt: skip
    def test_never_more_is_leased_under_random_work_and_kills(
        self, operations: int, member: MakeMember, place: Place, record_property: Callable[[str, object], None]
    ) -> None:
        first = member()
        first.do("statistics")
        audit = place.audit()
        began = time.monotonic()

        done = _work_and_kill(member, operations)

        took_s = time.monotonic() - began
        is_all_back = _waits_until(lambda: first.do("statistics")["leased_bytes"] == 0, seconds=TTL_S + 1)
        changes, most = audit.end()
        found = {**done, "leases that came or went": changes, "most leased / budget": most / BUDGET, "s": took_s}
        record_property("work", str(found))
        print(found)
        assert done["operations"] >= WORKERS * operations
        assert done["killed"] > 0
        assert changes > done["granted"] > 0, done
        assert 0 < most <= BUDGET * 95 // 100
        assert is_all_back, first.do("statistics")


class TestQueue:
    """Requests are served in the order in which they have come."""

    def test_large_request_is_not_starved_by_small_ones(self, member: MakeMember) -> None:
        holder, large, small = member(), member(), member()
        holder.do("take", "a", 60 * UNIT, 1)
        small.do("statistics")
        large.begin("take", "b", 90 * UNIT, 20)
        assert _waits_until(lambda: holder.do("statistics")["waiting"] == 1, seconds=10)

        assert "refused" in small.do("take", "c", UNIT, 0)
        small.begin("take", "c", 10 * UNIT, 20)
        assert _waits_until(lambda: holder.do("statistics")["waiting"] == 2, seconds=10)
        holder.do("give", "a")

        assert large.answer()["fence"]
        assert holder.do("statistics")["waiting"] == 1  # the small one does not fit beside it
        large.do("give", "b")
        assert small.answer()["fence"]

    def test_request_of_a_process_that_dies_holds_up_no_other(self, member: MakeMember) -> None:
        holder, large, small = member(), member(), member()
        holder.do("take", "a", 60 * UNIT, 1)
        large.begin("take", "b", 90 * UNIT, 20)
        assert _waits_until(lambda: holder.do("statistics")["waiting"] == 1, seconds=10)
        large.kill()

        began = time.monotonic()
        assert small.do("take", "c", UNIT, 20)["fence"]

        assert time.monotonic() - began < 2 * TTL_S + 2

    def test_request_that_was_refused_has_left_the_queue(self, member: MakeMember) -> None:
        holder, other = member(), member()
        holder.do("take", "a", 90 * UNIT, 1)

        assert "refused" in other.do("take", "b", 90 * UNIT, 0.1)

        assert _waits_until(lambda: holder.do("statistics")["waiting"] == 0, seconds=1)


class TestHolders:
    """A lease outlives its holder by no more than its time."""

    def test_lease_of_a_killed_process_comes_back(self, member: MakeMember) -> None:
        holder, other = member(), member()
        other.do("statistics")
        holder.do("take", "a", 90 * UNIT, 1)
        holder.kill()

        began = time.monotonic()
        assert other.do("take", "b", 90 * UNIT, 20)["fence"]

        assert time.monotonic() - began < TTL_S + 1

    def test_stopped_process_loses_its_lease_and_frees_no_other(self, member: MakeMember) -> None:
        holder, other = member(), member()
        holder.do("take", "a", 90 * UNIT, 1)
        holder.process.send_signal(signal.SIGSTOP)
        assert other.do("take", "b", 90 * UNIT, 20)["fence"]
        holder.process.send_signal(signal.SIGCONT)

        assert holder.do("give", "a") == {"lost": True}

        assert other.do("statistics")["leased_bytes"] == 90 * UNIT
        assert other.do("give", "b") == {"lost": False}

    def test_holder_is_told_of_a_lost_lease(self, member: MakeMember) -> None:
        holder = member()
        holder.do("take", "a", UNIT, 1)
        holder.process.send_signal(signal.SIGSTOP)
        time.sleep(TTL_S + 0.5)
        holder.process.send_signal(signal.SIGCONT)

        assert _waits_until(lambda: holder.do("told_lost") == 1, seconds=TTL_S)
        assert holder.do("statistics")["lost"] == 1

    def test_blocked_loop_keeps_its_lease(self, member: MakeMember) -> None:
        assert member().do("block_loop", 1.5 * TTL_S, UNIT) == {"lost": False}

    def test_forked_child_is_a_process_of_its_own(self, member: MakeMember) -> None:
        parent = member()
        parent.do("take", "a", 50 * UNIT, 1)

        found = parent.do("fork", 40 * UNIT)

        assert found["pids"] == sorted([parent.process.pid, found["child"]])
        assert parent.do("statistics")["leased_bytes"] == 50 * UNIT
        assert parent.do("give", "a") == {"lost": False}

    def test_closing_gives_everything_back(self, member: MakeMember) -> None:
        holder, other = member(), member()
        holder.do("take", "a", 60 * UNIT, 1)

        holder.do("close")

        assert other.do("take", "b", 90 * UNIT, 0)["fence"]
        assert [node["pid"] for node in other.do("nodes")] == [other.process.pid]


class TestNodesCommand:
    """`python -m memtools nodes` shows a pool without joining it."""

    @staticmethod
    def _run(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "memtools", "nodes", *words], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def test_table_has_a_line_for_each_process(self, place: Place, member: MakeMember) -> None:
        first, second = member(name="first"), member(name="second")
        first.do("take", "a", 30 * UNIT, 1)
        second.do("statistics")

        code, out, _ = self._run(place.url, "--pool", place.pool)

        lines = out.splitlines()
        assert code == 0
        assert lines[0].split() == ["node", "host", "pid", "used", "limit", "headroom", "leased", "level", "told"]
        assert [line.split()[0] for line in lines[1:3]] == ["first", "second"]
        assert "960.0 MiB" in lines[1]
        assert lines[-1].startswith("2 processes use")

    def test_json_has_the_figures(self, place: Place, member: MakeMember) -> None:
        process = member(name="first")
        process.do("take", "a", 30 * UNIT, 1)

        code, out, _ = self._run(place.url, "--pool", place.pool, "--json")

        found = json.loads(out)
        assert code == 0
        assert found["pool"]["leased_bytes"] == 30 * UNIT
        assert [node["pid"] for node in found["nodes"]] == [process.process.pid]

    def test_what_is_not_there_is_an_error_in_one_line(self, place: Place, member: MakeMember, tmp_path: Path) -> None:
        member().do("statistics")

        missing = self._run(place.missing_url)
        other_pool = self._run(place.url, "--pool", "other")
        no_address = self._run("memory.db")

        assert (missing[0], other_pool[0], no_address[0]) == (1, 1, 2)
        assert place.missing_words in missing[2]
        assert "no process has ever joined a pool 'other'" in other_pool[2]
        assert all(each[2].count("\n") == 1 for each in (missing, other_pool, no_address))
        assert not (tmp_path / "none.db").exists()


@pytest.mark.once
def test_example_of_a_fleet_runs(tmp_path: Path) -> None:
    path = Path(__file__).parent.parent.parent / "docs" / "examples" / "fleet.py"
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "120 files" in done.stdout
