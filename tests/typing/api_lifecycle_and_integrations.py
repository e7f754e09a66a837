"""Types of components and integrations; checked by mypy and pyright, never run."""

import asyncio
import logging
from typing import assert_type

from aiohttp import web
from starlette.applications import Starlette

from memtools import Component, Level, WeakCache, WeakParent
from memtools.integrations import MemoryFilter, MemoryMiddleware, MiddlewareStatistics, add_memory
from memtools.integrations.aiohttp import MemoryMiddleware as AiohttpMemoryMiddleware
from memtools.integrations.gunicorn import recycle_workers
from memtools.integrations.uvicorn import RecyclingMiddleware
from memtools.lifecycle import ComponentStatistics


class Shelf:
    shop = WeakParent["Shop"]()


class Shop(Component):
    def __init__(self) -> None:
        super().__init__("shop", grace=1)
        self.cache = self.own(WeakCache[str, bytes]())
        self.pool = self.own(Shelf(), close=lambda shelf: assert_type(shelf, Shelf))


async def owned_resources_keep_their_types() -> None:
    async with Shop() as shop:
        assert_type(shop, Shop)
        assert_type(shop.cache, WeakCache[str, bytes])
        assert_type(shop.create_task(asyncio.sleep(0, "x")), asyncio.Task[str])
        assert_type(shop.statistics(), ComponentStatistics)
        assert_type(shop.parent, Component | None)


def parent_may_be_none(shelf: Shelf, shop: Shop) -> None:
    assert_type(shelf.shop, Shop | None)
    shelf.shop = shop
    shelf.shop = None
    assert_type(Shelf.shop, WeakParent[Shop])


def parent_of_another_type_is_an_error(shelf: Shelf) -> None:
    shelf.shop = 3  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]  # the error under test


class CriticalMonitor:
    level = Level.CRITICAL


def middleware_accepts_an_application() -> None:
    app = MemoryMiddleware(Starlette(), warn="50 MiB", budget="10%", monitor=CriticalMonitor(), exempt={"/health"})
    assert_type(app.statistics(), MiddlewareStatistics)
    MemoryMiddleware(app, label=lambda scope: scope.get("template"))
    Starlette().add_middleware(MemoryMiddleware, warn="50 MiB")


def workers_are_recycled_by_one_line() -> None:
    recycle_workers(growth="200 MiB", monitor=CriticalMonitor())
    Starlette().add_middleware(RecyclingMiddleware, growth="200 MiB", limit="1 GiB", warm_up=10, jitter=0)
    web.Application(middlewares=[AiohttpMemoryMiddleware(warn="50 MiB")])


def logging_filter_and_structlog_processor(handler: logging.Handler) -> None:
    handler.addFilter(MemoryFilter())
    add_memory(None, "info", {"event": "started"})


def monitor_without_a_level_is_an_error() -> None:
    MemoryMiddleware(Starlette(), monitor=object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
