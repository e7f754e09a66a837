"""The steps of an investigation: what it reports, and what it leaves behind."""

import gc
import weakref
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from memtools.analysis import LeakKind, LeakVerdict, Leftover
from memtools.errors import ConfigError
from memtools.heap import Census, HeapGrowth, ReferrerPath, WhyAlive, heap_census
from memtools.leaks import Diagnosis, Leak, investigate, investigate_async
from memtools.leaks._diagnosis import make_diagnosis
from memtools.leaks._investigate import steps
from memtools.leaks._investigation import CompactCensus, Investigation, StringTable
from memtools.leaks._samples import Samples, jittered_intervals
from memtools.readings._counters import Counters, take_counters

MIB = 1 << 20
PYTHON = LeakVerdict(LeakKind.PYTHON, 1.5 * MIB, 900.0, 15.0, "blocks grow")


class Item:
    """An object of the kind that leaks."""


class Shop:
    orders: dict[int, Item] = {}  # noqa: RUF012  # the leak itself


def leaking() -> Iterator[Counters]:
    """Return counters of a process that leaks 1 MiB per second, sampled five times a second."""
    for place in count():
        grown = place * MIB // 5
        yield Counters(1_000.0 + place / 5, 60 * MIB + grown, 90_000 + place * 100, 8 * MIB + grown)


@pytest.fixture
def orders() -> Iterator[dict[int, Item]]:
    yield Shop.orders
    Shop.orders.clear()


def finish(steps: Iterator[object]) -> None:
    for _ in steps:
        pass


def investigate_scripted(investigation: Investigation, orders: dict[int, Any]) -> None:
    for _ in range(2):
        orders.update({len(orders) + number: Item() for number in range(300)})
        finish(investigation.count())
        for _ in range(60):
            investigation.sample()
    finish(investigation.find_holders())


def test_growing_dict_is_reported_with_rate_and_holder(orders: dict[int, Item]) -> None:
    investigation = Investigation(read=leaking().__next__, left_fraction=lambda: 1.0)

    investigate_scripted(investigation, orders)
    diagnosis = investigation.diagnosis()

    assert diagnosis.verdict.kind is LeakKind.PYTHON
    assert diagnosis.is_leak
    assert diagnosis.lines()[0].startswith("LEAK python +1.0 MiB/s | dict +")
    assert "(600 now), newest <int>: " in diagnosis.lines()[0]
    assert "Shop.orders" in diagnosis.lines()[0]
    assert str(diagnosis).count("Shop.orders") == 1  # growth that the container explains is not reported twice


def test_investigation_holds_no_object_afterwards(orders: dict[int, Item]) -> None:
    investigation = Investigation(read=leaking().__next__, left_fraction=lambda: 1.0)
    investigate_scripted(investigation, orders)
    one = weakref.ref(orders[0])

    orders.clear()

    assert one() is None
    assert investigation.diagnosis().is_leak


def test_near_the_limit_only_the_counters_are_read(orders: dict[int, Item]) -> None:
    investigation = Investigation(read=leaking().__next__, left_fraction=lambda: 0.03)

    investigate_scripted(investigation, orders)
    (line,) = investigation.diagnosis().lines()

    assert line.startswith("LEAK python")
    assert "Shop" not in line
    assert "only 3.0% of the limit is left" in line


def test_earlier_answer_outlives_what_an_ending_program_drops(orders: dict[int, Item]) -> None:
    investigation = Investigation(read=leaking().__next__, left_fraction=lambda: 1.0)
    investigate_scripted(investigation, orders)

    orders.clear()
    gc.collect()
    finish(investigation.count())
    finish(investigation.find_holders())

    assert "Shop.orders" in str(investigation.diagnosis())


def test_process_without_growth_gets_one_line_with_the_reason(orders: dict[int, Item]) -> None:
    times = count()
    investigation = Investigation(read=lambda: Counters(float(next(times)), MIB, 9, 9), left_fraction=lambda: 1.0)

    investigate_scripted(investigation, orders)

    assert investigation.diagnosis().lines() == ("no leak seen in 85 s: what is not given back does not grow",)


def test_samples_and_counts_add_hardly_any_block() -> None:
    samples, counts, names = Samples(), list[CompactCensus](), StringTable()
    counts.append(CompactCensus(heap_census(), names))
    for _ in range(3_000):
        samples.add(take_counters())
    gc.collect()
    before = take_counters().blocks

    for _ in range(3_000):
        samples.add(take_counters())
    counts.append(CompactCensus(heap_census(), names))
    gc.collect()

    assert take_counters().blocks - before < 60


def test_full_samples_keep_the_lower_of_two_figures() -> None:
    samples = Samples()

    for place in range(5_000):
        samples.add(Counters(float(place), 100 if place % 2 else 50, 7, None, None))
    kept = samples.until(float("inf"))

    assert 1_000 <= len(kept) <= 2_048
    assert kept[0].at == 0
    assert [one.at for one in kept] == sorted(one.at for one in kept)
    assert {one.resident_bytes for one in kept[:900]} == {50}
    assert {(one.malloc_bytes, one.traced_bytes) for one in kept} == {(None, None)}
    assert samples.until(10.0)[-1].at < 10


def test_compact_census_unpacks_to_the_original() -> None:
    counted = heap_census()

    unpacked = CompactCensus(counted, StringTable()).unpack()

    assert isinstance(unpacked, Census)
    assert unpacked == counted


def test_intervals_are_jittered_around_the_mean() -> None:
    gaps = jittered_intervals(0.2)

    taken = [next(gaps) for _ in range(1_000)]

    assert min(taken) >= 0.1
    assert max(taken) <= 0.3
    assert sum(taken) == pytest.approx(200, rel=0.01)
    assert len({round(gap, 4) for gap in taken}) > 500


def test_heap_is_counted_three_times_and_walked_at_the_end() -> None:
    now, done = [0.0], list[str]()

    class Scripted(Investigation):
        def sample(self) -> None:
            done.append("sample")

        def count(self) -> Iterator[None]:
            done.append(f"count at {now[0]:.0f}")
            yield

        def find_holders(self) -> Iterator[None]:
            done.append(f"walk at {now[0]:.0f}")
            yield

    for pause_s in steps(Scripted(), 20.0, clock=lambda: now[0]):
        now[0] += pause_s

    assert [what for what in done if what != "sample"] == ["count at 5", "count at 12", "count at 19", "walk at 20"]
    assert 90 <= done.count("sample") <= 110


@pytest.mark.parametrize("seconds", [5.9, -1, float("nan"), "20"])
async def test_duration_below_six_seconds_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="duration"):
        investigate(duration=seconds)
    with pytest.raises(ConfigError, match="duration"):
        await investigate_async(duration=seconds)


def test_investigation_that_ends_early_cannot_tell() -> None:
    diagnosis = investigate(duration=3_600, wait=lambda _: True)

    assert diagnosis.lines()[0].startswith("cannot tell: ")
    assert "too few" in diagnosis.lines()[0]


def _answer(root: str, *, is_rooted: bool = True, filling: str = "") -> WhyAlive:
    way = ReferrerPath(("list", root), 1, is_rooted, "drop it", filling)
    return WhyAlive("dict", 700, "'a': int", (way,), HeapGrowth("dict", 100, 700, 30.0, 12))


def test_leak_is_described_in_one_line() -> None:
    diagnosis = make_diagnosis(PYTHON, [_answer("app.orders")], [])

    assert str(diagnosis) == (
        "LEAK python +1.5 MiB/s | dict +30 items/s (700 now), newest 'a': int <- list <- app.orders | drop it"
    )


def test_only_the_first_leak_has_the_rate_of_the_process() -> None:
    leftover = Leftover("update_prices", "call", 4_100, 12_595, 51_000_000)

    first, second, third = make_diagnosis(PYTHON, [_answer("app.orders"), _answer("app.invoices")], [leftover]).leaks

    assert (first.bytes_per_s, second.bytes_per_s, third.bytes_per_s) == (1.5 * MIB, 0, 0)
    assert str(second) == (
        "LEAK python | call update_prices leaves 12.3 KiB behind per call: 4,100 ended, 48.6 MiB left"
    )
    assert third.holders == ("list", "app.invoices")


def test_leftover_comes_before_a_path_without_a_root() -> None:
    leftover = Leftover("poll", "task", 90, 2_048, 180_000)

    diagnosis = make_diagnosis(PYTHON, [_answer("a cycle", is_rooted=False)], [leftover])

    assert "task poll leaves 2.0 KiB behind per run" in diagnosis.lines()[0]


def test_bounded_cache_that_fills_up_cannot_be_told() -> None:
    diagnosis = make_diagnosis(PYTHON, [_answer("app.load", filling="an lru_cache that may have 5,000 and has 9")], [])

    assert diagnosis.lines() == ("cannot tell: what grows may be an lru_cache that may have 5,000 and has 9",)


@pytest.mark.parametrize("kind", [LeakKind.PYTHON, LeakKind.NATIVE, LeakKind.FRAGMENTATION])
def test_leak_without_a_holder_says_what_to_do(kind: LeakKind) -> None:
    diagnosis = make_diagnosis(LeakVerdict(kind, 100.0, 0.0, 15.0, "it grows"), [], [])

    (line,) = diagnosis.lines()

    assert line.startswith(f"LEAK {kind.value} +100 B/s | ")
    assert line.count(" | ") == 2


def test_diagnosis_converts_to_json() -> None:
    diagnosis = Diagnosis(PYTHON, (Leak(LeakKind.PYTHON, 1.5 * MIB, "dict", ("app.orders",), "drop it"),))

    assert diagnosis.to_dict() == {
        "verdict": "python", "bytes_per_s": 1_572_864, "blocks_per_s": 900.0, "seconds": 15.0, "reason": "blocks grow",
        "note": "", "leaks": [
            {"kind": "python", "bytes_per_s": 1_572_864, "what": "dict", "holders": ["app.orders"], "hint": "drop it"},
        ], "children": [],
    }  # fmt: skip
