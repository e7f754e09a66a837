"""The price of a bound: `BoundedDict` against `dict` and cachetools, `bounded_cache` against `lru_cache`.

Times of loops are net: an empty loop of the same length is taken off both, so that nothing but the call is compared.
CPython reads `x[key]` of a `dict` by an instruction of its own, and of every subclass, an empty one, too, by another
that takes longer; so a subclass that adds nothing is measured as well.
"""

import asyncio
import functools
import statistics
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import cachetools
from _compare import Result, Timing, compare, print_results

from memtools import bounded_cache
from memtools.structures import BoundedDict

_MAXLEN = 1000
_TURNS = 1000


class Bare(dict[int, int]):
    """What a dict costs as soon as it is a subclass."""

    __slots__ = ()


def run(rounds: int = 15) -> list[Result]:
    """Time writing, reading and cached calls."""
    return [*_writing(rounds), *_reading(rounds), *_calls(rounds)]


def _writing(rounds: int) -> list[Result]:
    by_hand: OrderedDict[int, int] = OrderedDict()

    def write_by_hand(key: int) -> None:
        by_hand[key] = key
        if len(by_hand) > _MAXLEN:
            by_hand.popitem(last=False)

    sized = _MAXLEN * 2 * sys.getsizeof(10**6)
    kinds: dict[str, Any] = {
        "LRUCache": cachetools.LRUCache(_MAXLEN),
        "LRUCache by size": cachetools.LRUCache(sized, sys.getsizeof),
        "TTLCache": cachetools.TTLCache(_MAXLEN, 3_600),
        "oldest": BoundedDict(maxlen=_MAXLEN, shrinkable=False),
        "three quarters": BoundedDict(maxlen=_MAXLEN, keep=_MAXLEN * 3 // 4, shrinkable=False),
        "long": BoundedDict({number: number for number in range(100_000)}, 100_000, shrinkable=False),
        "least recent": BoundedDict(maxlen=_MAXLEN, drop="least_recent", shrinkable=False),
        "bytes": BoundedDict(max_bytes=sized, shrinkable=False),
        "ttl": BoundedDict(maxlen=_MAXLEN, ttl=3_600, shrinkable=False),
        "hook": BoundedDict(maxlen=_MAXLEN, on_evict=lambda key, value: None, shrinkable=False),
    }
    cases = {name: _writes(kind.__setitem__) for name, kind in kinds.items()}
    timing = compare(
        {"loop": _loop, "by hand": _writes(write_by_hand), **cases},
        number=3, rounds=rounds, baseline="LRUCache", clock=time.thread_time_ns,
    )  # fmt: skip
    of_thousand = "x[key] = value, a new key, full with 1,000"
    lru, ordered = "cachetools.LRUCache(1000)", "an OrderedDict with popitem by hand, in a function"
    note = "time per entry, net of the loop"
    return [
        Result(of_thousand, lru, _net(timing, "oldest", "LRUCache"), 1.5, note),
        Result(of_thousand, ordered, _net(timing, "oldest", "by hand"), 2.0, note),
        Result(f"{of_thousand}, keep=750", lru, _net(timing, "three quarters", "LRUCache"), 1.5, note),
        Result("x[key] = value, a new key, full with 100,000", lru, _net(timing, "long", "LRUCache"), 1.5, note),
        Result(f"{of_thousand}, least_recent", lru, _net(timing, "least recent", "LRUCache"), 1.5, note),
        Result("the same, max_bytes", "cachetools.LRUCache with getsizeof", _net(timing, "bytes", "LRUCache by size"),
               2.5, note),
        Result(f"{of_thousand}, ttl", "cachetools.TTLCache(1000)", _net(timing, "ttl", "TTLCache"), 1.5, note),
        Result(f"{of_thousand}, on_evict", lru, _net(timing, "hook", "LRUCache"), 4.0, note),
    ]  # fmt: skip


def _reading(rounds: int) -> list[Result]:
    entries = {number: number for number in range(_MAXLEN)}
    oldest = BoundedDict(entries, _MAXLEN, shrinkable=False)
    recent = BoundedDict(entries, _MAXLEN, drop="least_recent", shrinkable=False)
    lru: Any = cachetools.LRUCache(_MAXLEN)
    lru.update(entries)
    bare = Bare(entries)
    kinds: dict[str, Any] = {"dict": entries, "bare": bare, "oldest": oldest, "least recent": recent, "LRUCache": lru}
    cases = {
        **{f"[] {name}": _subscripts(kind) for name, kind in kinds.items()},
        **{f"get {name}": _gets(kind) for name, kind in kinds.items()},
        **{f"iter {name}": functools.partial(list, kind) for name, kind in kinds.items()},
    }
    timing = compare({"loop": _loop, **cases}, number=5, rounds=rounds, baseline="[] dict", clock=time.thread_time_ns)
    note = "time per hit, net of the loop"
    own, lru_name = "x.get(key), least_recent", "cachetools.LRUCache"
    return [
        Result("x.get(key), a hit", "dict", _net(timing, "get oldest", "get dict"), 1.2, note),
        Result("x.get(key), a hit", "a bare dict subclass", _net(timing, "get oldest", "get bare"), 1.1, note),
        Result("x[key], a hit", "dict", _net(timing, "[] oldest", "[] dict"), 1.2, note),
        Result("x[key], a hit", "a bare dict subclass", _net(timing, "[] oldest", "[] bare"), 1.1, note),
        Result(
            "x[key], least_recent", "cachetools.LRUCache", _net(timing, "[] least recent", "[] LRUCache"), 1.2, note
        ),
        Result(own, lru_name, _net(timing, "get least recent", "get LRUCache"), 1.2, note),
        Result("list(x)", "list of a dict", _pairs(timing, "iter oldest", "iter dict"), 1.1, "time per list"),
    ]


def _calls(rounds: int) -> list[Result]:
    def identity(number: int) -> int:
        return number

    async def later(number: int) -> int:
        return number

    in_c = functools.lru_cache(_MAXLEN)(identity)
    ours = bounded_cache(_MAXLEN)(identity)
    by_cachetools: Any = cachetools.cached(cachetools.LRUCache(_MAXLEN), lock=threading.RLock())(identity)
    timing = compare(
        {
            "loop": _loop,
            "lru_cache": _hits(in_c),
            "cachetools": _hits(by_cachetools),
            "ours": _hits(ours),
        },
        number=3, rounds=rounds, baseline="lru_cache", clock=time.thread_time_ns,
    )  # fmt: skip
    median_ns = (timing.median_ns("ours") - timing.median_ns("loop")) / _TURNS
    note = f"time per hit, net of the loop; {median_ns:.0f} ns"
    waits = compare(
        {"bare": _awaits(later), "ours": _awaits(bounded_cache(_MAXLEN)(later))},
        number=3, rounds=rounds, baseline="bare", clock=time.thread_time_ns,
    )  # fmt: skip
    awaited_ns = waits.median_ns("ours") / _TURNS
    return [
        Result("a hit of bounded_cache", "cachetools.cached, lock", _net(timing, "ours", "cachetools"), 1.2, note),
        Result("a hit of bounded_cache", "functools.lru_cache, in C", _net(timing, "ours", "lru_cache"), 10.0, note),
        Result(
            "awaiting a hit of bounded_cache", "awaiting any coroutine", waits.ratio("ours"), 5.0,
            f"time per await; {awaited_ns:.0f} ns",
        ),
    ]  # fmt: skip


def _loop() -> None:
    for _ in range(_TURNS):
        pass


def _writes(write: Callable[..., object]) -> Callable[[], None]:
    next_key = 10**6
    takes_value = getattr(write, "__name__", "") == "__setitem__"

    def turns() -> None:
        nonlocal next_key
        first, next_key = next_key, next_key + _TURNS
        if takes_value:
            for key in range(first, next_key):
                write(key, key)
        else:
            for key in range(first, next_key):
                write(key)

    return turns


def _subscripts(kind: Any) -> Callable[[], None]:
    def turns() -> None:
        for key in range(_TURNS):
            kind[key]

    return turns


def _gets(kind: Any) -> Callable[[], None]:
    def turns() -> None:
        for key in range(_TURNS):
            kind.get(key)

    return turns


def _hits(function: Callable[[int], int]) -> Callable[[], None]:
    def turns() -> None:
        for number in range(_TURNS):
            function(number)

    return turns


def _awaits(function: Callable[[int], Any]) -> Callable[[], None]:
    async def turns() -> None:
        for number in range(_TURNS):
            await function(number)

    return lambda: asyncio.run(turns())


def _net(timing: Timing, case: str, peer: str) -> float:
    rounds = timing.rounds_ns
    triples = zip(rounds[case], rounds[peer], rounds["loop"], strict=True)
    return statistics.median((own - loop) / (peer - loop) for own, peer, loop in triples)


def _pairs(timing: Timing, case: str, peer: str) -> float:
    rounds = timing.rounds_ns
    return statistics.median(own / other for own, other in zip(rounds[case], rounds[peer], strict=True))


if __name__ == "__main__":
    print_results(run())
