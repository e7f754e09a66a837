"""What type checkers see of components and integrations. Never run."""

import asyncio
from typing import assert_type

from memtools import Component, WeakCache, WeakParent
from memtools.lifecycle import ComponentStatistics


class Shelf:
    shop = WeakParent["Shop"]()


class Shop(Component):
    def __init__(self) -> None:
        super().__init__("shop", grace=1)
        self.cache = self.own(WeakCache[str, bytes]())
        self.pool = self.own(Shelf(), close=lambda shelf: assert_type(shelf, Shelf))


async def what_is_owned_keeps_its_type() -> None:
    async with Shop() as shop:
        assert_type(shop, Shop)
        assert_type(shop.cache, WeakCache[str, bytes])
        assert_type(shop.create_task(asyncio.sleep(0, "x")), asyncio.Task[str])
        assert_type(shop.statistics(), ComponentStatistics)
        assert_type(shop.parent, Component | None)


def a_parent_may_be_gone(shelf: Shelf, shop: Shop) -> None:
    assert_type(shelf.shop, Shop | None)
    shelf.shop = shop
    shelf.shop = None
    assert_type(Shelf.shop, WeakParent[Shop])


def another_kind_of_parent_is_refused(shelf: Shelf) -> None:
    shelf.shop = 3  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]  # the point
