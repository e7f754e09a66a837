"""`memory_scope`: a block of code with a name and an account."""

import asyncio
import logging

import pytest

from memtools import BudgetExceeded, ConfigError, ScopeClosed, memory_scope, subscribe
from memtools.events import BudgetOverrun, HighUsage, ScopeEnded
from memtools.ledger import statistics

MB = 10**6


def scope(name="block", **options):
    return memory_scope(name, meter="tracemalloc", **options)


def test_peak_and_retained_of_a_block_are_within_two_percent():
    kept = []

    with scope() as block:
        kept.append(bytearray(5 * MB))
        bytearray(20 * MB)

    assert block.usage.peak_bytes == pytest.approx(25 * MB, rel=0.02)
    assert block.usage.retained_bytes == pytest.approx(5 * MB, rel=0.02)
    assert block.usage.duration_s > 0
    assert block.usage.exact
    assert kept


def test_usage_can_be_read_while_the_block_runs():
    with scope() as block:
        kept = bytearray(3 * MB)
        during = block.usage
        del kept
        after = block.usage

    assert during.retained_bytes == pytest.approx(3 * MB, rel=0.02)
    assert after.retained_bytes < MB
    assert after.peak_bytes == pytest.approx(3 * MB, rel=0.02)


def test_nested_scopes_fold_into_the_outer_one():
    with scope("outer") as outer:
        first = bytearray(10 * MB)
        with scope("inner") as inner:
            second = bytearray(5 * MB)
            third = bytearray(20 * MB)
            del third
        del first

    assert inner.usage.peak_bytes == pytest.approx(25 * MB, rel=0.02)
    assert inner.usage.retained_bytes == pytest.approx(5 * MB, rel=0.02)
    assert outer.usage.peak_bytes == pytest.approx(35 * MB, rel=0.02)
    assert outer.usage.retained_bytes == pytest.approx(5 * MB, rel=0.02)
    assert len(second) == 5 * MB


def test_without_its_children_a_scope_is_charged_for_its_own_only():
    kept = []

    with scope("around") as around, scope("outer", include_children=False) as outer:
        kept.append(bytearray(2 * MB))
        with scope("inner"):
            kept.append(bytearray(7 * MB))

    assert outer.usage.retained_bytes == pytest.approx(2 * MB, rel=0.02)
    assert around.usage.retained_bytes == pytest.approx(9 * MB, rel=0.02)


async def test_async_with_is_the_same():
    async with scope() as block:
        await asyncio.sleep(0)
        kept = bytearray(3 * MB)

    assert block.usage.peak_bytes >= 3 * MB
    assert len(kept) == 3 * MB


def test_before_it_is_entered_a_scope_has_no_usage():
    with pytest.raises(ScopeClosed, match=r"block.*not been entered"):
        _ = scope().usage


def test_a_scope_is_entered_once_at_a_time_and_again_after_its_end():
    block = scope()
    with block:
        with pytest.raises(ScopeClosed, match="entered already"):
            block.__enter__()
        kept = bytearray(4 * MB)
    del kept

    with block:
        pass

    assert block.usage.peak_bytes < MB


def test_a_high_peak_is_warned_of_with_the_largest_children(caplog):
    told = []

    with (
        subscribe(lambda event: told.append(event) if isinstance(event, HighUsage) else None),
        caplog.at_level(logging.WARNING, logger="memtools.scopes"),
        scope("nightly", warn="10 MB"),
    ):
        for number in range(5):
            with scope(f"part {number}"):
                bytearray(number * 5 * MB)

    assert [event.name for event in told] == ["nightly"]
    assert [name for name, _ in told[0].largest] == ["part 4", "part 3", "part 2"]
    assert "High memory increase: nightly used 19.1 MiB, warning at 9.5 MiB" in caplog.text
    assert "part 4 19.1 MiB" in caplog.text


def test_no_warning_below_the_size(caplog):
    with scope("quiet", warn="10 MB"):
        bytearray(MB)

    assert not caplog.records


def test_a_budget_raises_at_the_end_of_the_block():
    with pytest.raises(BudgetExceeded, match=r"import used 2\.9 MiB, budget 1\.0 MiB"), scope("import", budget="1 MiB"):
        bytearray(3 * MB)


def test_the_blocks_own_exception_goes_first_and_the_overrun_is_still_told():
    told = []

    @scope(budget=0)
    def work():
        raise KeyError(len(bytearray(MB)))

    with (
        subscribe(lambda event: told.append(event) if isinstance(event, BudgetOverrun) else None),
        pytest.raises(KeyError),
    ):
        work()

    assert [(event.name, event.in_flight) for event in told] == [("block", False)]


def test_on_exceed_warns_or_calls_instead(caplog):
    given = []

    with scope("warned", budget=0, on_exceed="warn"):
        bytearray(MB)
    with scope("called", budget=0, on_exceed=given.append):
        bytearray(MB)

    assert "Memory budget exceeded: warned used" in caplog.text
    assert [error.scope for error in given] == ["called"]


def test_as_a_decorator_each_call_is_a_scope():
    told = []

    @scope("job")
    def job():
        return len(bytearray(2 * MB))

    @scope("items")
    def items():
        yield bytearray(MB)

    @scope("later")
    async def later():
        await asyncio.sleep(0)
        return len(bytearray(3 * MB))

    with subscribe(told.append):
        assert job() == 2 * MB
        assert len(list(items())) == 1
        assert asyncio.run(later()) == 3 * MB

    assert [(event.name, event.kind) for event in told if isinstance(event, ScopeEnded)] == [
        ("job", "scope"),
        ("items", "scope"),
        ("later", "scope"),
    ]
    assert [event.peak_bytes for event in told] == pytest.approx([2 * MB, MB, 3 * MB], rel=0.02)
    assert job.__name__ == "job"


def test_what_is_no_function_is_not_decorated():
    async def items():
        yield 1

    with pytest.raises(ConfigError, match=r"function=<function .*items"):
        scope("items")(items)
    with pytest.raises(ConfigError, match=r"function=3"):
        scope("items")(3)


def test_the_accounts_of_the_process_hold_the_tree():
    with scope("tree root"):
        for _ in range(3):
            with scope("tree leaf"):
                bytearray(MB)

    root = next(entry for entry in statistics().accounts if entry.name == "tree root")
    assert [(leaf.name, leaf.started, leaf.active) for leaf in root.children] == [("tree leaf", 3, 0)]
    assert root.children[0].mean_peak_bytes == pytest.approx(MB, rel=0.02)


def test_resident_never_claims_to_be_exact():
    with memory_scope("rss", meter="rss") as block:
        # More than malloc ever keeps back for later, and touched: it has to show.
        kept = bytearray(b"x") * (64 * MB)

    assert block.usage.meter == "rss"
    assert not block.usage.exact
    assert block.usage.peak_bytes >= 50 * MB
    assert block.usage.resident_delta_bytes >= 50 * MB
    assert len(kept) == 64 * MB


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: memory_scope(""), "name=''"),
        (lambda: memory_scope(None), "name=None"),
        (lambda: memory_scope("x", warn="512Mb"), "warn='512Mb'.*512 MiB"),
        (lambda: memory_scope("x", warn="120%"), "warn='120%'"),
        (lambda: memory_scope("x", warn=True), "warn=True"),
        (lambda: memory_scope("x", budget=-1), "budget=-1"),
        (lambda: memory_scope("x", budget=float("inf")), "budget=inf"),
        (lambda: memory_scope("x", budget=1, on_exceed="stop"), "on_exceed='stop'.*raise.*warn"),
        (lambda: memory_scope("x", meter="exact"), "meter='exact'.*traced.*resident"),
    ],
)
def test_what_makes_no_sense_is_refused_at_construction(refused, words):
    with pytest.raises(ConfigError, match=words):
        refused()


def test_repr_is_one_line_and_says_the_state():
    block = scope("a name")

    states = [repr(block)]
    with block:
        states.append(repr(block))
    states.append(repr(block))

    assert states == [
        "<memory_scope 'a name' not entered>",
        "<memory_scope 'a name' open>",
        "<memory_scope 'a name' ended>",
    ]
