"""`memory_scope`: usage, tree, warning, budget and decorator form of a block."""

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


def test_nested_scopes_are_included_in_the_outer_one():
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


def test_scope_without_children_is_charged_for_its_own_only():
    kept = []

    with scope("around") as around, scope("outer", include_children=False) as outer:
        kept.append(bytearray(2 * MB))
        with scope("inner"):
            kept.append(bytearray(7 * MB))

    assert outer.usage.retained_bytes == pytest.approx(2 * MB, rel=0.02)
    assert around.usage.retained_bytes == pytest.approx(9 * MB, rel=0.02)


async def test_async_with_measures_like_with():
    async with scope() as block:
        await asyncio.sleep(0)
        kept = bytearray(3 * MB)

    assert block.usage.peak_bytes >= 3 * MB
    assert len(kept) == 3 * MB


def test_usage_before_entry_raises_scope_closed():
    with pytest.raises(ScopeClosed, match=r"block.*not been entered"):
        _ = scope().usage


def test_scope_can_be_entered_again_only_after_its_end():
    block = scope()
    with block:
        with pytest.raises(ScopeClosed, match="entered already"):
            block.__enter__()
        kept = bytearray(4 * MB)
    del kept

    with block:
        pass

    assert block.usage.peak_bytes < MB


def test_peak_above_warn_is_reported_with_largest_children(caplog):
    events = []

    with (
        subscribe(lambda event: events.append(event) if isinstance(event, HighUsage) else None),
        caplog.at_level(logging.WARNING, logger="memtools.scopes"),
        scope("nightly", warn="10 MB"),
    ):
        for number in range(5):
            with scope(f"part {number}"):
                bytearray(number * 5 * MB)

    assert [event.name for event in events] == ["nightly"]
    assert [name for name, _ in events[0].largest] == ["part 4", "part 3", "part 2"]
    assert "High peak: nightly used 19.1 MiB, warning size 9.5 MiB" in caplog.text
    assert "part 4 19.1 MiB" in caplog.text


def test_peak_below_warn_is_not_reported(caplog):
    with scope("quiet", warn="10 MB"):
        bytearray(MB)

    assert not caplog.records


def test_exceeded_budget_raises_at_the_end_of_the_block():
    with pytest.raises(BudgetExceeded, match=r"import used 2\.9 MiB, budget 1\.0 MiB"), scope("import", budget="1 MiB"):
        bytearray(3 * MB)


def test_block_that_fails_over_budget_raises_its_own_exception():
    events = []

    @scope(budget=0)
    def work():
        raise KeyError(len(bytearray(MB)))

    with (
        subscribe(lambda event: events.append(event) if isinstance(event, BudgetOverrun) else None),
        pytest.raises(KeyError),
    ):
        work()

    assert [(event.name, event.in_flight) for event in events] == [("block", False)]


def test_on_exceed_warn_and_callable_do_not_raise(caplog):
    given = []

    with scope("warned", budget=0, on_exceed="warn"):
        bytearray(MB)
    with scope("called", budget=0, on_exceed=given.append):
        bytearray(MB)

    assert "Memory budget exceeded: warned used" in caplog.text
    assert [error.scope for error in given] == ["called"]


def test_scope_as_a_decorator_opens_a_scope_for_each_call():
    events = []

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

    with subscribe(events.append):
        assert job() == 2 * MB
        assert len(list(items())) == 1
        assert asyncio.run(later()) == 3 * MB

    assert [(event.name, event.kind) for event in events if isinstance(event, ScopeEnded)] == [
        ("job", "scope"),
        ("items", "scope"),
        ("later", "scope"),
    ]
    assert [event.peak_bytes for event in events] == pytest.approx([2 * MB, MB, 3 * MB], rel=0.02)
    assert job.__name__ == "job"


def test_scope_as_a_decorator_refuses_other_objects():
    async def items():
        yield 1

    with pytest.raises(ConfigError, match=r"function=<function .*items"):
        scope("items")(items)
    with pytest.raises(ConfigError, match=r"function=3"):
        scope("items")(3)


def test_ledger_accounts_contain_the_tree_of_scopes():
    with scope("tree root"):
        for _ in range(3):
            with scope("tree leaf"):
                bytearray(MB)

    root = next(entry for entry in statistics().accounts if entry.name == "tree root")
    assert [(leaf.name, leaf.started, leaf.active) for leaf in root.children] == [("tree leaf", 3, 0)]
    assert root.children[0].mean_peak_bytes == pytest.approx(MB, rel=0.02)


def test_rss_usage_is_never_exact(trimmed_heap):
    with memory_scope("rss", meter="rss") as block:
        # More than malloc keeps for reuse, and written to, so that it is resident.
        kept = bytearray(b"x") * (64 * MB)

    assert block.usage.meter == "rss"
    assert not block.usage.exact
    assert block.usage.peak_bytes >= 50 * MB
    assert block.usage.resident_delta_bytes >= 50 * MB
    assert len(kept) == 64 * MB


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: memory_scope(""), "name=''"),
        (lambda: memory_scope(None), "name=None"),
        (lambda: memory_scope("x", warn="512Mb"), "warn='512Mb'.*512 MiB"),
        (lambda: memory_scope("x", warn="120%"), "warn='120%'"),
        (lambda: memory_scope("x", warn=True), "warn=True"),
        (lambda: memory_scope("x", budget=-1), "budget=-1"),
        (lambda: memory_scope("x", budget=float("inf")), "budget=inf"),
        (lambda: memory_scope("x", budget=1, on_exceed="stop"), "on_exceed='stop'.*raise.*warn"),
        (lambda: memory_scope("x", meter="exact"), "meter='exact'.*tracemalloc.*rss"),
    ],
)
def test_invalid_argument_raises_config_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_repr_shows_name_and_state_in_one_line():
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
