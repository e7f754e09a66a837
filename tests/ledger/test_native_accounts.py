"""Live bytes of accounts, closed owners included, and the part that closed owners have left."""

import asyncio
import gc
from collections import namedtuple
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.decorators import profile_memory
from memtools.ledger import AccountStatistics, Meter, Owner, choose_meter, forget_accounts, native_reason, statistics
from memtools.ledger._ledger import close_owner, open_owner
from memtools.ledger._owner import UsageTuple
from memtools.scopes import memory_scope

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

MB = 1_000_000
SLACK = 40_000


@pytest.fixture(autouse=True)
def meter() -> Iterator[Meter]:
    """The native meter, counting, and empty accounts."""
    forget_accounts()
    meter = choose_meter("native")
    meter.acquire()
    yield meter
    meter.release()
    forget_accounts()


def near(expected: int) -> Any:
    return pytest.approx(expected, abs=SLACK)


def account(*path: str) -> AccountStatistics:
    children = statistics().accounts
    for name in path[:-1]:
        (children,) = (entry.children for entry in children if entry.name == name)
    (found,) = (entry for entry in children if entry.name == path[-1])
    return found


def test_account_knows_bytes_of_owners_that_are_gone() -> None:
    kept = []
    for _ in range(20):
        with memory_scope("leaves some"):
            kept.append(bytearray(100_000))
    gc.collect()

    left = account("leaves some")
    assert left.live_bytes == left.live_after_end_bytes == near(20 * 100_000)
    kept.clear()
    assert account("leaves some").live_bytes == near(0)


def test_parent_account_includes_bytes_left_by_children() -> None:
    with memory_scope("outer"):
        own = bytearray(MB)
        with memory_scope("inner"):
            kept = bytearray(3 * MB)

    assert account("outer").live_bytes == near(4 * MB)
    assert account("outer", "inner").live_bytes == near(3 * MB)
    assert len(own) + len(kept) == 4 * MB


def test_bytes_of_an_open_owner_are_live_and_not_left() -> None:
    with memory_scope("ended twice"):
        first = bytearray(MB)
    with memory_scope("ended twice"):
        second = bytearray(3 * MB)
        found = account("ended twice")

    assert (found.live_bytes, found.live_after_end_bytes) == (near(4 * MB), near(MB))
    assert len(first) + len(second) == 4 * MB


def test_open_child_is_not_left_by_its_closed_parent(meter: Meter) -> None:
    handler = open_owner("handler", "call", meter=meter)
    job = open_owner("job", "task", meter=meter)
    kept = bytearray(MB)
    close_owner(handler)
    while_open = account("handler")
    close_owner(job)

    assert (while_open.live_bytes, while_open.live_after_end_bytes) == (near(MB), near(0))
    assert account("handler").live_after_end_bytes == near(MB)
    assert len(kept) == MB


def test_account_that_excludes_children_has_its_own_bytes() -> None:
    with memory_scope("all"), memory_scope("alone", include_children=False):
        own = bytearray(MB)
        with memory_scope("below"):
            kept = bytearray(3 * MB)

    assert account("all").live_bytes == near(4 * MB)
    assert account("all", "alone").live_bytes == near(MB)
    assert len(own) + len(kept) == 4 * MB


def test_recursive_function_counts_each_block_once() -> None:
    kept = []

    @profile_memory(name="descend")
    def descend(depth: int) -> None:
        kept.append(bytearray(MB))
        if depth:
            descend(depth - 1)

    descend(2)

    assert account("descend").live_bytes == near(3 * MB)


def test_other_meters_do_not_know_live_bytes_of_accounts() -> None:
    for name in ("tracemalloc", "rss"):
        with memory_scope(name, meter=name):
            pass

    assert [(entry.live_bytes, entry.live_after_end_bytes) for entry in statistics().accounts] == [(None, None)] * 2


def test_forget_accounts_keeps_only_bytes_of_open_owners() -> None:
    with memory_scope("goes on"):
        kept = [bytearray(MB)]
        with memory_scope("ended"):
            kept.append(bytearray(3 * MB))
        forget_accounts()
        kept.append(bytearray(MB))

        assert account("goes on").live_bytes == near(2 * MB)
    assert [entry.name for entry in account("goes on").children] == []


def test_checkpoints_are_taken_after_powers_of_two() -> None:
    kept = []

    @profile_memory(name="leaks")
    def leaks() -> None:
        kept.append(bytes(10_000))

    for _ in range(300):
        leaks()

    marks = account("leaks").live_at_checkpoints
    assert [calls for calls, _ in marks] == [32, 64, 128, 256]
    assert all(left == near(calls * 10_033) for calls, left in marks)


async def test_concurrent_tasks_are_distinguished_after_their_end() -> None:
    kept: dict[str, bytearray] = {}

    async def work(name: str, size: int) -> None:
        await asyncio.sleep(0)
        kept[name] = bytearray(size)
        await asyncio.sleep(0)

    from memtools.ledger import track_tasks

    with track_tasks(meter="native"):
        await asyncio.gather(*(
            asyncio.create_task(work(name, size), name=name) for name, size in (("large", 5 * MB), ("small", MB))
        ))  # fmt: skip

    assert (account("large").live_after_end_bytes, account("small").live_after_end_bytes) == (near(5 * MB), near(MB))


@given(
    acts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(1, 300_000)), max_size=20),
    freed=st.sets(st.integers(0, 40)),
)
def test_sum_over_all_accounts_is_the_live_bytes(acts: list[tuple[str, int, int]], freed: set[int]) -> None:
    forget_accounts()
    kept: dict[int, bytearray] = {}
    sizes: dict[str, int] = dict.fromkeys("abc", 0)

    for place, (name, depth, size) in enumerate(acts):
        opened = [open_owner(f"{name}{level}", "scope", meter=choose_meter("native")) for level in range(depth + 1)]
        kept[place] = bytearray(size)
        for owner in reversed(opened):
            close_owner(owner)
        sizes[name] += size
    for place in freed & kept.keys():
        sizes[acts[place][0]] -= len(kept.pop(place))

    found = {entry.name: entry.live_bytes for entry in statistics().accounts}
    assert found == {f"{name}0": near(size) for name, size in sizes.items() if f"{name}0" in found}
    assert {name[0] for name in found} == {name for name, _, _ in acts}


def test_usage_type_with_fields_in_another_order_is_refused() -> None:
    from memtools.ledger import _native

    others = [name for name in UsageTuple._fields if name != "peak_bytes"]
    swapped: Any = namedtuple("swapped", ["peak_bytes", *others])  # noqa: PYI024  # its types do not matter
    calls: list[Any] = [lambda *_: None] * 5

    with pytest.raises(TypeError, match="the fields of UsageTuple"):
        _native.configure(Owner, swapped, ContextVar("unused"), {}, *calls, "native")
