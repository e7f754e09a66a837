"""`bounded_cache`: `lru_cache` that is bounded by bytes and time, lets objects go, and shares coroutine runs."""

import asyncio
import copy
import functools
import gc
import inspect
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import pytest

from memtools import ConfigError, Level, bounded_cache
from memtools.cleanup import registered
from memtools.decorators import CacheInfo
from memtools.errors import RecursiveFactory
from memtools.structures import BoundedDict


@bounded_cache
def doubled(number: int) -> int:
    """Return twice the number."""
    return 2 * number


class Shop:
    """An object whose methods are cached in every way."""

    runs = 0

    @bounded_cache
    def page(self, number: int) -> list[int]:
        """Return a page."""
        self.runs += 1
        return [number]

    @bounded_cache(maxlen=8)
    async def later(self, number: int) -> list[int]:
        self.runs += 1
        await asyncio.sleep(0)
        return [number]

    @classmethod
    @bounded_cache
    def of_class(cls, number: int) -> list[Any]:
        return [cls, number]

    @bounded_cache
    @classmethod
    def of_class_too(cls, number: int) -> list[Any]:
        return [cls, number]

    @staticmethod
    @bounded_cache
    def static(number: int) -> list[int]:
        return [number]

    @bounded_cache(maxlen=8)
    @staticmethod
    def static_too(number: int) -> list[int]:
        return [number]


class TestFunctions:
    def test_results_are_remembered(self) -> None:
        calls: list[tuple[Any, ...]] = []

        @bounded_cache(maxlen=2)
        def add(first: int, second: int = 0) -> int:
            calls.append((first, second))
            return first + second

        assert [add(1), add(1), add(1, second=2), add(1, second=2), add(5)] == [1, 1, 3, 3, 5]
        assert calls == [(1, 0), (1, 2), (5, 0)]
        assert add.cache_info() == (2, 3, 2, 2)
        assert add(1) == 1  # was used the longest time ago
        assert calls[-1] == (1, 0)

    @pytest.mark.parametrize("typed", [False, True])
    def test_same_calls_as_for_lru_cache(self, typed: bool) -> None:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((1,), {}), ((1.0,), {}), ((True,), {}), ((), {"x": 1}), ((), {"x": 1.0}), ((1, 2), {}), (((1, 2),), {}),
            ((), {"x": 1, "y": 2}), ((), {"y": 2, "x": 1}), (("a",), {}), (("a", "b"), {}), ((), {}), (("x", 1), {}),
        ] * 2  # fmt: skip

        def echo(*args: Any, **kwargs: Any) -> Any:
            return args, kwargs

        ours, by_functools = bounded_cache(64, typed)(echo), functools.lru_cache(64, typed)(echo)

        for args, kwargs in calls:
            assert ours(*args, **kwargs) == by_functools(*args, **kwargs)
            assert ours.cache_info() == by_functools.cache_info()

    def test_failure_is_not_remembered(self) -> None:
        runs: list[int] = []

        @bounded_cache
        def fail(number: int) -> None:
            runs.append(number)
            raise LookupError(number)

        for _ in range(2):
            with pytest.raises(LookupError) as caught:
                fail(1)
            assert caught.value.__context__ is None

        assert runs == [1, 1]
        assert fail.cache_info().currsize == 0

    def test_recursion_works(self) -> None:
        @bounded_cache(max_bytes="1 MiB")
        def fibonacci(number: int) -> int:
            return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

        assert fibonacci(100) == 354224848179261915075
        assert fibonacci.cache_info().misses == 101

    def test_bytes_bound_results_and_keys(self) -> None:
        @bounded_cache(max_bytes="100 KiB")
        def body(number: int) -> bytes:
            return bytes(10_000)

        for number in range(50):
            body(number)

        figures = body.cache_statistics()
        assert figures.size_bytes is not None
        assert figures.size_bytes <= 100 * 1024
        assert 5 < figures.length < 11
        assert figures.evicted == 50 - figures.length
        assert body.cache_info().maxsize is None

    def test_result_that_is_too_large_is_returned(self) -> None:
        @bounded_cache(max_bytes="10 KiB")
        def body(size: int) -> bytes:
            return bytes(size)

        body(10)
        assert len(body(100_000)) == 100_000
        assert body.cache_info().currsize == 1

    def test_ttl_ends_results(self) -> None:
        now = [0.0]

        @bounded_cache(ttl=10, clock=lambda: now[0])
        def at() -> float:
            return now[0]

        assert at() == 0
        now[0] = 9.0
        assert at() == 0
        now[0] = 10.0
        assert at() == 10
        assert at.cache_statistics().expired == 1

    def test_clear_forgets_results_and_figures(self) -> None:
        @bounded_cache
        def echo(number: int) -> int:
            return number

        echo(1)
        echo(1)
        echo.cache_clear()

        assert echo.cache_info() == CacheInfo(0, 0, 128, 0)
        assert echo.cache_parameters() == {"maxsize": 128, "typed": False, "max_bytes": None, "ttl": None}

    def test_unhashable_argument_raises_as_lru_cache_does(self) -> None:
        with pytest.raises(TypeError, match="unhashable"):
            doubled([])  # type: ignore[arg-type]

    def test_clean_up_drops_what_was_not_used(self) -> None:
        @bounded_cache(1_000)
        def body(number: int) -> bytes:
            return bytes(100)

        for number in range(1_000):
            body(number)
        (results,) = [each for each in registered() if isinstance(each, BoundedDict) and len(each) == 1_000]
        assert results.shrink(Level.CRITICAL, time.monotonic() + 60) > 90_000
        del results

        assert body.cache_info().currsize == 50
        body(999)
        assert body.cache_info().hits == 1

    def test_function_that_dies_takes_its_results_along(self) -> None:
        class Result:
            pass

        @bounded_cache
        def make() -> Result:
            return Result()

        result = weakref.ref(make())
        del make
        gc.collect()

        assert result() is None

    def test_threads_get_right_results_within_the_bound(self) -> None:
        @bounded_cache(16)
        def square(number: int) -> int:
            return number * number

        errors: list[Any] = []

        def call(offset: int) -> None:
            for turn in range(3_000):
                number = (turn * offset) % 40
                if square(number) != number * number:
                    errors.append(number)

        threads = [threading.Thread(target=call, args=(offset,)) for offset in (1, 3, 7, 11)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        info = square.cache_info()
        assert errors == []
        assert info.hits + info.misses == 12_000
        assert info.currsize == 16

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"maxlen": -1}, "maxlen"),
            ({"maxlen": None}, "maxlen"),
            ({"typed": 1}, "typed"),
            ({"max_bytes": "much"}, "max_bytes"),
            ({"ttl": -1}, "ttl"),
            ({"sizeof": 1}, "sizeof"),
            ({"shrinkable": None}, "shrinkable"),
            ({"clock": 1}, "clock"),
        ],
    )
    def test_wrong_argument_is_named(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            bounded_cache(**arguments)

    def test_name_of_lru_cache_is_answered_with_ours(self) -> None:
        with pytest.raises(TypeError, match="use 'maxlen'"):
            bounded_cache(maxsize=10)  # type: ignore[call-overload]

    def test_generators_are_refused(self) -> None:
        def items() -> Iterator[int]:
            yield 1

        async def items_later() -> Any:
            yield 1

        for function in (items, items_later):
            with pytest.raises(ConfigError, match="comes only once"):
                bounded_cache(function)

    def test_function_stays_what_it_is(self) -> None:
        assert inspect.isfunction(doubled)
        assert doubled.__name__ == "doubled"
        assert doubled.__doc__ == "Return twice the number."
        assert str(inspect.signature(doubled)) == "(number: int) -> int"
        assert doubled.__wrapped__(4) == 8
        assert doubled.__globals__ is globals()  # type: ignore[attr-defined]

    def test_pickled_and_copied_by_reference(self) -> None:
        functions: tuple[Any, ...] = (doubled, Shop.page, Shop.static, Shop.static_too, Shop.__dict__["page"])
        for function in functions:
            assert copy.copy(function) is function
            assert copy.deepcopy(function) is function
        for function in functions[:-1]:
            assert pickle.loads(pickle.dumps(function)) is function

    def test_function_of_main_is_sent_by_value(self) -> None:
        def made() -> Any:
            factor = 3

            @bounded_cache
            def tripled(number: int) -> int:
                return factor * number

            return tripled

        tripled = made()
        tripled(1)
        loaded = pickle.loads(cloudpickle.dumps(tripled))

        assert [loaded(1), loaded(1)] == [3, 3]
        assert loaded.cache_info() == (1, 1, 128, 1)

    def test_partials_builtins_and_classes(self) -> None:
        assert bounded_cache(functools.partial(pow, 2))(10) == 1024
        assert bounded_cache(abs)(-3) == 3

        point = bounded_cache(complex)
        assert point(1, 2) is point(1, 2)


class TestMethods:
    def test_object_is_not_kept(self) -> None:
        shop = Shop()
        assert shop.page(1) is shop.page(1)
        result = weakref.ref(shop)

        del shop
        gc.collect()

        assert result() is None

    def test_results_go_with_their_object(self) -> None:
        class Value:
            pass

        class Owner:
            @bounded_cache
            def value(self, number: int) -> Value:
                return Value()

        first, second = Owner(), Owner()
        gone, stays = weakref.ref(first.value(1)), weakref.ref(second.value(1))
        assert gone() is not stays()
        assert Owner.value.cache_info().currsize == 2

        del first
        gc.collect()

        assert gone() is None
        assert stays() is second.value(1)
        assert Owner.value.cache_info().currsize == 1

    def test_bound_is_that_of_all_objects(self) -> None:
        class Owner:
            @bounded_cache(10)
            def value(self, number: int) -> int:
                return number

        owners = [Owner() for _ in range(5)]
        for owner in owners:
            for number in range(5):
                owner.value(number)

        assert Owner.value.cache_info() == (0, 25, 10, 10)
        assert owners[0].value.cache_info() == Owner.value.cache_info()

    def test_object_that_lives_long_keeps_no_old_keys(self) -> None:
        class Owner:
            @bounded_cache(4)
            def value(self, number: int) -> int:
                return number

        owner = Owner()
        for number in range(2_000):
            owner.value(number)

        cache: Any = Owner.value.cache_info.__self__  # type: ignore[attr-defined]
        (reference,) = cache._instances.values()
        assert len(reference.keys) < 100

    def test_unhashable_object_has_results(self) -> None:
        class Items(list[int]):
            runs = 0

            @bounded_cache
            def total(self) -> int:
                self.runs += 1
                return sum(self)

        first, second = Items([1]), Items([1])

        assert [first.total(), first.total(), second.total()] == [1, 1, 1]
        assert (first.runs, second.runs) == (1, 1)

    def test_object_without_weak_references_is_part_of_the_key(self) -> None:
        class Point(NamedTuple):
            x: int

            @bounded_cache
            def doubled(self) -> list[int]:
                return [2 * self.x]

        assert Point(2).doubled() is Point(2).doubled()
        assert Point(3).doubled() == [6]

    def test_call_through_the_class_is_that_of_the_object(self) -> None:
        shop = Shop()

        assert Shop.page(shop, 1) is shop.page(1)
        assert shop.runs == 1
        assert Shop.page.__doc__ == "Return a page."
        assert Shop.page.__wrapped__(shop, 2) == [2]

    def test_class_and_static_methods(self) -> None:
        class Branch(Shop):
            pass

        for name in ("of_class", "of_class_too"):
            assert getattr(Shop, name)(1) is getattr(Shop(), name)(1)
            assert getattr(Branch, name)(1) == [Branch, 1]
            assert getattr(Shop, name)(1) == [Shop, 1]
            assert getattr(Shop, name).cache_info().currsize >= 2
        for name in ("static", "static_too"):
            assert getattr(Shop, name)(1) is getattr(Shop(), name)(1)
            assert getattr(Shop, name).cache_info().hits >= 1

    def test_subclass_may_call_super(self) -> None:
        class Branch(Shop):
            def page(self, number: int) -> list[int]:
                return [*super().page(number), 0]

        branch = Branch()

        assert branch.page(1) == branch.page(1) == [1, 0]
        assert branch.runs == 1


class TestCoroutines:
    def test_tasks_share_one_run(self) -> None:
        runs: list[int] = []

        @bounded_cache
        async def load(number: int) -> list[int]:
            runs.append(number)
            await asyncio.sleep(0.01)
            return [number]

        async def main() -> list[list[int]]:
            results = await asyncio.gather(*[load(1) for _ in range(100)])
            return [*results, await load(1)]

        results = asyncio.run(main())

        assert inspect.iscoroutinefunction(load)
        assert runs == [1]
        assert all(result is results[0] for result in results)
        assert load.cache_info() == (1, 100, 128, 1)
        assert asyncio.run(load(1)) is results[0]  # in another loop, too

    def test_failure_reaches_all_and_is_not_remembered(self) -> None:
        runs: list[int] = []

        @bounded_cache
        async def fail() -> None:
            runs.append(1)
            await asyncio.sleep(0.01)
            raise LookupError("none")

        async def main() -> list[Any]:
            first = await asyncio.gather(fail(), fail(), return_exceptions=True)
            return [*first, *await asyncio.gather(fail(), return_exceptions=True)]

        errors = asyncio.run(main())

        assert [type(error) for error in errors] == [LookupError] * 3
        assert len(runs) == 2

    def test_cancelled_task_does_not_cancel_the_others(self) -> None:
        ended: list[str] = []

        @bounded_cache
        async def load() -> str:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return "loaded"

        async def main() -> None:
            first, second = asyncio.create_task(load()), asyncio.create_task(load())
            await asyncio.sleep(0)
            first.cancel()
            assert await second == "loaded"
            assert first.cancelled()

            load.cache_clear()
            only = asyncio.create_task(load())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            only.cancel()
            await asyncio.gather(only, return_exceptions=True)
            assert load.cache_info().currsize == 0

        asyncio.run(main())
        assert ended == ["cancelled"]

    def test_result_of_a_run_before_clear_is_not_remembered(self) -> None:
        @bounded_cache
        async def load() -> str:
            await asyncio.sleep(0.01)
            return "old"

        async def main() -> None:
            task = asyncio.create_task(load())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert load.cache_statistics().in_progress == 1
            load.cache_clear()
            assert await task == "old"
            assert load.cache_info().currsize == 0

        asyncio.run(main())

    def test_recursion_of_other_calls_works_and_of_the_same_is_named(self) -> None:
        @bounded_cache
        async def fibonacci(number: int) -> int:
            return number if number < 2 else await fibonacci(number - 1) + await fibonacci(number - 2)

        @bounded_cache
        async def circular() -> None:
            await circular()

        assert asyncio.run(fibonacci(30)) == 832040
        with pytest.raises(RecursiveFactory):
            asyncio.run(circular())

    def test_methods_share_runs_and_let_objects_go(self) -> None:
        shop = Shop()

        async def main(shop: Shop) -> None:
            first, second = await asyncio.gather(shop.later(1), shop.later(1))
            assert first is second
            assert shop.runs == 1

        asyncio.run(main(shop))
        assert inspect.iscoroutinefunction(shop.later)
        assert inspect.iscoroutinefunction(Shop.later)
        result = weakref.ref(shop)
        del shop
        gc.collect()

        assert result() is None
        assert Shop.later.cache_info().currsize == 0


_PROGRAM = """
from __future__ import annotations
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from memtools import bounded_cache

runs = []


class Settings:
    def __init__(self, name: str):
        self.name = name


@bounded_cache
def settings() -> Settings:
    runs.append("settings")
    return Settings("shop")


@bounded_cache
async def rates(currency: str = "EUR") -> dict[str, int]:
    runs.append("rates")
    return {currency: 1}


app = FastAPI()


@app.get("/")
async def index(settings: Annotated[Settings, Depends(settings)], rates: Annotated[dict, Depends(rates)]):
    return {"name": settings.name, "rates": rates}


with TestClient(app) as client:
    for _ in range(3):
        assert client.get("/?currency=CHF").json() == {"name": "shop", "rates": {"CHF": 1}}
assert sorted(runs) == ["rates", "settings"], runs
"""


@pytest.mark.once
def test_fastapi_takes_cached_functions_as_dependencies() -> None:
    pytest.importorskip("fastapi")

    ended = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 0, ended.stderr
