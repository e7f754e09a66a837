"""The price of a bound: `BoundedList` against `deque(maxlen)` for adding, against a bare list subclass for reading.

Times of loops are net: an empty loop of the same length is taken off both, so that nothing but the call is compared.
Adding is timed for both types that it can come from, the one in C where it was built and the one in Python. The exact
window has a floor that no Python code goes below: `list.append` and `list.pop(0)` alone move the same 8 kB each time.
It is measured, too.
"""

import importlib
import statistics
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

from _compare import Result, Timing, compare, print_results

from memtools.structures import BoundedList

_MAXLEN = 1000
_TURNS = 2000
_ROOM = "memtools.structures"


class Kind(NamedTuple):
    """A bounded list whose adding comes from C or from Python, and what is promised of it."""

    language: str
    bounded_list: type[BoundedList[int]]
    append: float
    exact: float
    extend: float


class Bare(list[int]):
    """What a list costs as soon as it is a subclass."""

    __slots__ = ()


def run(rounds: int = 15) -> list[Result]:
    """Time adding, reading and making."""
    adding = [result for kind in _kinds() for result in (*_appending(kind, rounds), *_extending(kind, rounds))]
    return [*adding, *_reading(rounds), *_making(rounds)]


def _kinds() -> list[Kind]:
    in_python = Kind("in Python", _in_python(), append=6.0, exact=14.0, extend=1.3)
    if in_python.bounded_list.__mro__[2].__name__ == BoundedList.__mro__[2].__name__:
        return [in_python]
    return [Kind("in C", BoundedList, append=1.2, exact=6.0, extend=1.3), in_python]


def _in_python() -> type[Any]:
    """Return the class as it is without the C type, from modules of its own."""
    others = {name: module for name, module in sys.modules.items() if not name.startswith(_ROOM)}
    with mock.patch.dict(sys.modules, others, clear=True), mock.patch.dict("os.environ", MEMTOOLS_NATIVE="0"):
        found: type[Any] = importlib.import_module(_ROOM).BoundedList
    return found


def _appending(kind: Kind, rounds: int) -> list[Result]:
    bounded_list = kind.bounded_list
    full: deque[int] = deque(range(_MAXLEN), maxlen=_MAXLEN)
    three_quarters = bounded_list(range(_MAXLEN), _MAXLEN, keep=_MAXLEN * 3 // 4, shrinkable=False)
    exact = bounded_list(range(_MAXLEN), _MAXLEN, shrinkable=False)
    byte_bounded = bounded_list(range(_MAXLEN), _MAXLEN, keep=_MAXLEN * 3 // 4, max_bytes="1 MiB", shrinkable=False)
    timing = compare(
        {
            "loop": _loop,
            "deque": _appends(full.append),
            "three quarters": _appends(three_quarters.append),
            "exact": _appends(exact.append),
            "floor": _moves(list(range(_MAXLEN))),
            "byte bounded": _appends(byte_bounded.append),
        },
        number=5,
        rounds=rounds,
        baseline="deque",
    )
    floor = _net(timing, "floor", "deque")
    note = "time per append, net of the loop"
    peer = "deque(maxlen=1000).append"
    in_words = kind.language
    return [
        Result(f"append {in_words}, maxlen=1000, keep=750", peer, _net(timing, "three quarters", "deque"), kind.append,
               note),
        Result(f"append {in_words}, maxlen=1000, exact window", peer, _net(timing, "exact", "deque"), kind.exact, note),
        Result(f"append {in_words}, maxlen=1000, exact window", "list.append and list.pop(0)",
               _net(timing, "exact", "floor"), 2.0, f"{note}; that floor is {floor:.1f}x of deque.append"),
        Result(f"append {in_words}, keep=750, max_bytes", peer, _net(timing, "byte bounded", "deque"), 60.0,
               note),
    ]  # fmt: skip


def _extending(kind: Kind, rounds: int) -> list[Result]:
    hundred = list(range(100))
    full: deque[int] = deque(range(_MAXLEN), maxlen=_MAXLEN)
    exact = kind.bounded_list(range(_MAXLEN), _MAXLEN, shrinkable=False)
    three_quarters = kind.bounded_list(range(_MAXLEN), _MAXLEN, keep=_MAXLEN * 3 // 4, shrinkable=False)
    bare = Bare(range(_MAXLEN))

    def extend_bare() -> None:
        bare.extend(hundred)
        del bare[:-_MAXLEN]

    timing = compare(
        {
            "deque": lambda: full.extend(hundred),
            "exact": lambda: exact.extend(hundred),
            "three quarters": lambda: three_quarters.extend(hundred),
            "bare": extend_bare,
        },
        number=3000,
        rounds=rounds,
        baseline="deque",
    )
    trimmed = statistics.median(
        own / peer for own, peer in zip(timing.rounds_ns["exact"], timing.rounds_ns["bare"], strict=True)
    )
    peer = "deque(maxlen=1000).extend"
    title = f"extend(100 items) {kind.language}"
    by_hand = "extend and del x[:-1000] by hand on a list subclass"
    return [
        Result(f"{title}, exact window", peer, timing.ratio("exact"), kind.extend),
        Result(f"{title}, keep=750", peer, timing.ratio("three quarters"), kind.extend),
        Result(f"{title}, exact window", by_hand, trimmed, 2.0),
    ]


def _reading(rounds: int) -> list[Result]:
    own = BoundedList(range(_MAXLEN), _MAXLEN, shrinkable=False)
    bare = Bare(range(_MAXLEN))
    peer = "a bare list subclass"
    return [
        Result("x[500]", peer, _pair(lambda x: [x[500] for _ in range(2000)], own, bare, rounds), 1.05),
        Result("x[100:200]", peer, _pair(lambda x: [x[100:200] for _ in range(300)], own, bare, rounds), 1.05),
        Result("for item in x", peer, _pair(lambda x: [None for _ in x], own, bare, rounds), 1.05),
        Result("len(x)", peer, _pair(lambda x: [len(x) for _ in range(2000)], own, bare, rounds), 1.05),
        Result("sorted in place", peer, _pair(lambda x: x.sort(), own, bare, rounds), 1.05),
    ]


def _making(rounds: int) -> list[Result]:
    timing = compare(
        {
            "on the register": lambda: BoundedList((), 10),
            "not on it": lambda: BoundedList((), 10, shrinkable=False),
        },
        number=3000,
        rounds=rounds,
        baseline="not on it",
    )
    note = f"{timing.median_ns('on the register') / 1000:.1f} us each"
    return [Result("making one, on the register", "making one that is not", timing.ratio("on the register"), 1.6, note)]


def _loop() -> None:
    for _ in range(_TURNS):
        pass


def _appends(append: Callable[[int], None]) -> Callable[[], None]:
    # The owner is not looked up in the loop, for either side: a bound method calls a method as fast as a builtin.
    def turns() -> None:
        for number in range(_TURNS):
            append(number)

    return turns


def _moves(items: list[int]) -> Callable[[], None]:
    def turns() -> None:
        for number in range(_TURNS):
            items.append(number)
            items.pop(0)

    return turns


def _net(timing: Timing, case: str, peer: str) -> float:
    rounds = timing.rounds_ns
    triples = zip(rounds[case], rounds[peer], rounds["loop"], strict=True)
    return statistics.median((own - loop) / (peer - loop) for own, peer, loop in triples)


def _pair(act: Callable[[list[int]], object], own: BoundedList[int], bare: Bare, rounds: int) -> float:
    timing = compare(
        {"own": lambda: act(own), "bare": lambda: act(bare)}, number=30, rounds=rounds * 2, baseline="bare"
    )
    return timing.ratio("own")


if __name__ == "__main__":
    print_results(run())
