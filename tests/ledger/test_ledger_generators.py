"""Generators, whose consumer runs between their steps in the same context and is not charged to them."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from memtools.ledger import Meter, active_owner
from memtools.ledger._ledger import close_owner, open_owner
from memtools.scopes import memory_scope
from memtools.scopes._calls import CallOptions, generate, generate_async

MB = 1_000_000
FOLLOWS_FRAMES = pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12")


def near(truth: int) -> Any:
    # Any: what pytest.approx returns has no public type.
    return pytest.approx(truth, rel=0.02, abs=64_000)


def numbers(store: list[bytearray]) -> Generator[int, None, None]:
    for number in range(3):
        store.append(bytearray(2 * MB))
        yield number


async def async_numbers(store: list[bytearray]) -> AsyncGenerator[int, None]:
    for number in range(3):
        store.append(bytearray(2 * MB))
        await asyncio.sleep(0.001)
        yield number


def scoped_numbers(store: list[bytearray], found: list[memory_scope]) -> Iterator[int]:
    with memory_scope("scoped", meter="tracemalloc") as scope:
        found.append(scope)
        yield from numbers(store)


async def scoped_async_numbers(store: list[bytearray], found: list[memory_scope]) -> AsyncIterator[int]:
    async with memory_scope("scoped", meter="tracemalloc") as scope:
        found.append(scope)
        async with aclosing(async_numbers(store)) as inner:
            async for number in inner:
                yield number


def test_decorated_generator_is_charged_without_its_consumer(session: Meter, accounts: Any) -> None:
    made: list[bytearray] = []
    consumed: list[bytearray] = []

    for _ in generate(CallOptions("numbers", "call", session), numbers(made)):
        assert active_owner() is None
        consumed.append(bytearray(10 * MB))

    assert accounts["numbers"].retained_bytes == near(6 * MB)
    assert accounts["numbers"].exact


def test_owner_opened_in_a_step_is_charged_in_the_next(session: Meter, accounts: Any) -> None:
    made: list[bytearray] = []

    def outer() -> Generator[int, None, None]:
        inner = open_owner("inner", "scope", meter=session)
        made.append(bytearray(MB))
        yield 1
        made.append(bytearray(4 * MB))
        close_owner(inner)
        made.append(bytearray(2 * MB))
        yield 2

    for step in generate(CallOptions("outer", "call", session), outer()):
        assert step in (1, 2)
        made.append(bytearray(10 * MB))

    (entry,) = accounts["outer"].children
    assert entry.retained_bytes == near(5 * MB)
    assert accounts["outer"].retained_bytes == near(7 * MB)


async def test_decorated_async_generator_is_charged_alone(session: Meter, accounts: Any) -> None:
    made: list[bytearray] = []
    others: list[bytearray] = []

    async def noisy() -> None:
        for _ in range(4):
            others.append(bytearray(7 * MB))
            await asyncio.sleep(0.0005)

    async def consumer() -> None:
        async for _ in generate_async(CallOptions("numbers", "call", session), async_numbers(made)):
            assert active_owner() is None
            others.append(bytearray(10 * MB))

    await asyncio.gather(consumer(), noisy())

    assert accounts["numbers"].retained_bytes == near(6 * MB)
    assert accounts["numbers"].exact


@FOLLOWS_FRAMES
def test_scope_in_generator_is_charged_without_its_consumer(session: Meter) -> None:
    found: list[memory_scope] = []
    consumed: list[bytearray] = []
    owner = open_owner("consumer", "scope", meter=session)

    for _ in scoped_numbers([], found):
        assert active_owner() is owner
        consumed.append(bytearray(10 * MB))
    close_owner(owner)

    assert found[0].usage.peak_bytes == near(6 * MB)
    assert found[0].usage.exact
    assert owner.peak_bytes == near(36 * MB)


@FOLLOWS_FRAMES
@pytest.mark.parametrize("is_left_early", [True, False])
async def test_scope_in_async_generator_is_charged_without_consumer(session: Meter, is_left_early: bool) -> None:
    found: list[memory_scope] = []
    store: list[bytearray] = []
    consumed: list[bytearray] = []

    async with aclosing(scoped_async_numbers(store, found)) as made:  # type: ignore[type-var]  # it is a generator
        async for number in made:
            consumed.append(bytearray(10 * MB))
            if is_left_early and number == 1:
                break

    assert found[0].usage.retained_bytes == near(4 * MB if is_left_early else 6 * MB)
    assert found[0].usage.exact


@FOLLOWS_FRAMES
def test_alternating_generators_are_charged_separately(session: Meter) -> None:
    first: list[memory_scope] = []
    second: list[memory_scope] = []
    stores: list[list[bytearray]] = [[], []]

    for _ in zip(scoped_numbers(stores[0], first), scoped_numbers(stores[1], second), strict=True):
        pass

    assert [each[0].usage.retained_bytes for each in (first, second)] == [near(6 * MB)] * 2


@pytest.mark.parametrize("is_async", [True, False])
async def test_untracked_scope_in_generator_is_not_active_in_consumer(
    session: Meter, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    from memtools.ledger import _frames

    monkeypatch.setattr(_frames, "is_available", lambda: False)
    found: list[memory_scope] = []
    consumed: list[bytearray] = []

    if is_async:
        async for _ in scoped_async_numbers([], found):
            assert active_owner() is None
            consumed.append(bytearray(10 * MB))
    else:
        for _ in scoped_numbers([], found):
            assert active_owner() is None
            consumed.append(bytearray(10 * MB))

    assert not found[0].usage.exact
    assert "process-wide" in found[0].usage.note
    assert found[0].usage.retained_bytes >= 30 * MB
