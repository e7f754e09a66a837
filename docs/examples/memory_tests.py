"""Tests that fail where a small price service leaves memory behind: `pytest docs/examples/memory_tests.py`.

The name keeps pytest from collecting them by default: they need the pytest plugin of an installed memtools.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memtools import BoundedList


class PriceService:
    """Keeps the latest prices of each symbol."""

    def __init__(self) -> None:
        self.prices: dict[str, BoundedList[float]] = {}

    async def refresh(self, symbol: str, price: float) -> None:
        await asyncio.sleep(0)
        self.prices.setdefault(symbol, BoundedList(maxlen=100)).append(price)

    def report(self) -> str:
        return "\n".join(f"{symbol}: {max(prices)}" for symbol, prices in self.prices.items())


_shared = PriceService()


@pytest.fixture
def service() -> Iterator[PriceService]:
    service = PriceService()
    yield service
    service.prices.clear()


@pytest.mark.memory_growth(max_bytes="1 KiB")
def test_refreshing_again_and_again_leaves_nothing_behind() -> None:
    async def day() -> None:
        for number in range(200):
            await _shared.refresh("AAPL", float(number))

    asyncio.run(day())

    assert len(_shared.prices["AAPL"]) == 100


@pytest.mark.memory_peak("1 MiB")
def test_a_report_needs_little(service: PriceService) -> None:
    asyncio.run(service.refresh("MSFT", 1.5))

    assert service.report() == "MSFT: 1.5"


@pytest.mark.no_leaked_tasks
def test_refreshing_ends_what_it_starts(service: PriceService) -> None:
    asyncio.run(service.refresh("MSFT", 1.5))


@pytest.mark.memory_growth
def test_what_was_used_is_in_the_summary(service: PriceService, memory_probe: Callable[[str], Any]) -> None:
    with memory_probe("refresh"):
        asyncio.run(service.refresh("MSFT", 1.5))
