"""The price of a hit: against `weakref.WeakValueDictionary` and `functools.lru_cache`.

Hits of each kind, and storing. Each case asks for all of its keys once, in a loop of its own, so that the loop costs
each the same.
"""

import asyncio
import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from _compare import Result, compare, print_results

from memtools.structures import WeakCache

_KEYS = [f"key-{number}" for number in range(50)]
_MANY = [f"key-{number}" for number in range(1_000)]
_NOTE = "time per hit, 50 keys in turn"


class _Value:
    """Something that can be weakly referenced."""


def run(rounds: int = 15) -> list[Result]:
    """Time hits of the kinds that a service has."""
    return [*_hot(rounds), *_weak(rounds), *_stored(rounds), *_awaited(rounds)]


def _hot(rounds: int) -> list[Result]:
    values = {key: _Value() for key in _KEYS}
    cache: WeakCache[str, _Value] = WeakCache()
    cache.update(values)
    peer: WeakValueDictionary[str, _Value] = WeakValueDictionary(values)
    memo = functools.lru_cache(maxsize=128)(values.__getitem__)

    cases = {
        "own": _asks(lambda keys: [cache.get(key) for key in keys], _KEYS),
        "weak": _asks(lambda keys: [peer.get(key) for key in keys], _KEYS),
        "lru": _asks(lambda keys: [memo(key) for key in keys], _KEYS),
    }
    timing = compare(cases, number=200, rounds=rounds, baseline="own")
    nanoseconds = f"{_NOTE}; {timing.median_ns('own') / len(_KEYS):.0f} ns"
    return [
        Result("WeakCache().get, a hit", "WeakValueDictionary.get", 1 / timing.ratio("weak"), 1.1, nanoseconds),
        Result("WeakCache().get, a hit", "a functools.lru_cache hit", 1 / timing.ratio("lru"), 1.8, nanoseconds),
    ]


def _weak(rounds: int) -> list[Result]:
    values = {key: _Value() for key in _MANY}
    bare: WeakCache[str, _Value] = WeakCache(strong=0)
    tiered: WeakCache[str, _Value] = WeakCache()
    for cache in (bare, tiered):
        cache.update(values)
    peer: WeakValueDictionary[str, _Value] = WeakValueDictionary(values)

    lock, order = threading.RLock(), OrderedDict(values)

    def locked(key: str) -> _Value:
        with lock:
            order.move_to_end(key)
            return order[key]

    cases = {
        "bare": _asks(lambda keys: [bare.get(key) for key in keys], _MANY),
        "tiered": _asks(lambda keys: [tiered.get(key) for key in keys], _MANY),
        "weak": _asks(lambda keys: [peer.get(key) for key in keys], _MANY),
        "locked": _asks(lambda keys: [locked(key) for key in keys], _MANY),
    }
    timing = compare(cases, number=10, rounds=rounds, baseline="weak")
    against_locked = timing.ratio("tiered") / timing.ratio("locked")
    tiered_name = "WeakCache().get, each hit out of the weak tier, which makes it strong"
    name, note = "WeakValueDictionary.get", "time per hit, 1,000 living keys in turn"
    return [
        Result("WeakCache(strong=0).get, a hit", name, timing.ratio("bare"), 6.0, note),
        Result(tiered_name, name, timing.ratio("tiered"), 18.0, note),
        Result(tiered_name, "an OrderedDict moved to its end under a lock", against_locked, 6.0, note),
    ]


def _stored(rounds: int) -> list[Result]:
    values = {key: _Value() for key in _MANY}
    cache: WeakCache[str, _Value] = WeakCache()
    peer: WeakValueDictionary[str, _Value] = WeakValueDictionary()

    def own_hit() -> None:
        for key, value in values.items():
            cache[key] = value

    def peer_hit() -> None:
        for key, value in values.items():
            peer[key] = value

    timing = compare({"own": own_hit, "peer": peer_hit}, number=5, rounds=rounds, baseline="peer")
    note = "time per value, 1,000 living keys in turn"
    return [Result("WeakCache()[key] = value", "WeakValueDictionary", timing.ratio("own"), 4.0, note)]


def _awaited(rounds: int) -> list[Result]:
    cache: WeakCache[str, _Value] = WeakCache()
    values = {key: _Value() for key in _KEYS}
    cache.update(values)

    async def make() -> _Value:
        return _Value()

    async def plain(key: str) -> _Value:
        return values[key]

    async def own_hit() -> None:
        for key in _KEYS:
            await cache.aget_or_create(key, make)

    async def bare() -> None:
        for key in _KEYS:
            await plain(key)

    def drive(ask: Callable[[], object]) -> Callable[[], object]:
        # A hit never suspends: the coroutine ends at its first step, so no loop is in the figure.
        def once() -> None:
            with contextlib.suppress(StopIteration):
                ask().send(None)  # type: ignore[attr-defined]

        return once

    timing = compare({"own": drive(own_hit), "bare": drive(bare)}, number=200, rounds=rounds, baseline="bare")
    microseconds = timing.median_ns("own") / len(_KEYS) / 1_000
    return [
        Result("await aget_or_create, a hit", "awaiting a coroutine that looks into a dict", timing.ratio("own"), 2.0),
        Result("await aget_or_create, a hit", "1.2 us, as async-lru on our machine", microseconds / 1.2, 0.5, _NOTE),
    ]


def _asks(ask: Callable[[Iterable[str]], object], keys: list[str]) -> Callable[[], object]:
    return functools.partial(ask, keys)


if __name__ == "__main__":
    asyncio.run(asyncio.sleep(0))  # excludes the first-use costs of asyncio
    print_results(run())
