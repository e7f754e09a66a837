"""Types of decorators, scopes and data structures; checked by mypy and pyright, never run."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, assert_type

from memtools import (
    BoundedDict,
    BoundedList,
    Level,
    Reading,
    Usage,
    WeakCache,
    bounded_cache,
    bounded_history,
    effective_limit,
    memory_budget,
    memory_scope,
    profile_memory,
    subscribe,
)
from memtools.decorators import CacheInfo, CallCacheStatistics, FunctionMemory, History, HistorySummary
from memtools.events import Subscription


@profile_memory
def plain(first: int, *, second: str = "") -> float:
    return first + len(second)


@profile_memory(name="later", sample_every=10, meter="tracemalloc")
async def later(first: int) -> str:
    return str(first)


@memory_budget("50 MiB")
def budgeted(first: int) -> bytes:
    return bytes(first)


@memory_budget("50 MiB", on_exceed="warn", measure="retained")
async def budgeted_later(first: int) -> bytes:
    return bytes(first)


@bounded_history
def remembered(first: int) -> int:
    return first


@bounded_history(100, keep=75, keep_results=True)
async def remembered_later(first: int) -> int:
    return first


@memory_budget("50 MiB", on_exceed="deny", meter="native")
def denied(first: int) -> bytes:
    return bytes(first)


@profile_memory
def items(count: int) -> Generator[int, None, str]:
    yield from range(count)
    return "done"


@profile_memory
async def items_later(count: int) -> AsyncGenerator[int, None]:
    for number in range(count):
        yield number


@memory_scope("scoped")
def scoped(first: int) -> str:
    return str(first)


@bounded_cache
def cached(first: int, *, second: str = "") -> float:
    return first + len(second)


@bounded_cache(max_bytes="1 MiB", ttl=60)
async def cached_later(first: int) -> str:
    return str(first)


class Service:
    @bounded_cache(100)
    def cached(self, first: int) -> str:
        return str(first)

    @bounded_cache
    async def cached_later(self, first: int) -> str:
        return str(first)

    @profile_memory
    def method(self, first: int) -> str:
        return str(first)

    @profile_memory(sample_every=2)
    async def method_later(self, first: int) -> str:
        return str(first)

    @memory_budget("1 GiB")
    def budgeted(self, first: int) -> str:
        return str(first)

    @bounded_history(10, per_instance=True)
    def remembered(self, first: int) -> str:
        return str(first)

    @profile_memory
    @staticmethod
    def fixed(first: int) -> str:
        return str(first)


async def use(service: Service) -> None:
    assert_type(plain(1, second="x"), float)
    waiting: Coroutine[Any, Any, str] = later(1)
    assert_type(await waiting, str)
    assert_type(budgeted(1), bytes)
    assert_type(await budgeted_later(1), bytes)
    assert_type(remembered(1), int)
    assert_type(await remembered_later(1), int)
    assert_type(items(3), Generator[int, None, str])
    assert_type(items_later(3), AsyncGenerator[int, None])
    assert_type(scoped(1), str)

    assert_type(cached(1, second="x"), float)
    assert_type(await cached_later(1), str)
    assert_type(cached.cache_info(), CacheInfo)
    assert_type(service.cached(1), str)
    assert_type(await service.cached_later(1), str)
    assert_type(Service.cached(service, 1), str)
    assert_type(service.cached.cache_statistics(), CallCacheStatistics)

    assert_type(plain.memory, FunctionMemory)
    assert_type(plain.memory.last, Usage | None)
    assert_type(remembered.history, History)
    assert_type(remembered_later.history.summary(), HistorySummary)

    assert_type(service.method(1), str)
    assert_type(Service.method(service, 1), str)
    assert_type(await service.method_later(1), str)
    assert_type(service.method.memory, FunctionMemory)
    assert_type(service.budgeted(1), str)
    assert_type(service.remembered(1), str)
    assert_type(service.remembered.history, History)
    assert_type(Service.fixed(1), str)


def wrong_arguments_are_errors() -> None:
    plain("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    budgeted()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    profile_memory(samples=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    cached("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    BoundedDict[str, int](drop="newest")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    BoundedList[int](maxlen="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def scopes() -> None:
    with memory_scope("block", warn="50 MiB") as scope:
        assert_type(scope, memory_scope)
    assert_type(scope.usage, Usage)
    async with memory_scope("block", budget=1000) as later_scope:
        assert_type(later_scope.usage.peak_bytes, int)


def structures() -> None:
    recent = BoundedList([1, 2], maxlen=1000)
    assert_type(recent, BoundedList[int])
    assert_type(recent[0], int)
    assert_type(recent[:1], list[int])
    assert_type(recent.copy(), BoundedList[int])

    entries = BoundedDict({"a": 1}, maxlen=1000, ttl=60, drop="least_recent")
    assert_type(entries, BoundedDict[str, int])
    assert_type(entries["a"], int)
    assert_type(entries.get("a"), int | None)
    assert_type(entries.pop("a", None), int | None)
    assert_type(entries.copy(), BoundedDict[str, int])
    entries.update({"b": 2}, c=3)
    entries |= {"d": 4}
    as_dict: dict[str, int] = entries
    as_dict["b"] = 2

    cache: WeakCache[str, Service] = WeakCache(strong=0)
    assert_type(cache.get("x"), Service | None)
    assert_type(cache["x"], Service)
    assert_type(cache.get_or_create("x", Service), Service)


def readings_and_events() -> None:
    assert_type(effective_limit().value_bytes, int | None)
    assert_type(list(Level), list[Level])
    assert_type(Reading(1, None, 0.0).used_bytes, int)
    hook: Callable[[object], None] = print
    assert_type(subscribe(hook), Subscription)
