"""The price of a decorated call that measures nothing, against wrapt's own pass-through.

The pass-through is what everybody writes who follows wrapt's manual: a wrapper of four arguments that calls the wrapped
function. The same function is called bare, through it, and decorated and off sample; an empty loop is taken off all.
"""

import statistics
from collections.abc import Callable, Coroutine
from typing import Any

import wrapt
from _compare import Result, Timing, compare, print_results

from memtools import bounded_history, memory_budget, profile_memory

_TURNS = 2_000
_NEVER = 10**9  # the first call is measured, and no other


@wrapt.decorator
def pass_through(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Do nothing but call."""
    return wrapped(*args, **kwargs)


def _plain(number: int, scale: int = 2) -> int:
    return number


async def _coroutine(number: int, scale: int = 2) -> int:
    return number


class _Bare:
    def plain(self, number: int, scale: int = 2) -> int:
        return number

    async def coroutine(self, number: int, scale: int = 2) -> int:
        return number


class _Wrapped:
    plain = pass_through(_Bare.plain)
    coroutine = pass_through(_Bare.coroutine)


class _Ours:
    plain = profile_memory(sample_every=_NEVER)(_Bare.plain)
    coroutine = profile_memory(sample_every=_NEVER)(_Bare.coroutine)


def run(rounds: int = 15) -> list[Result]:
    """Time functions and methods, plain and coroutine functions."""
    bare, wrapped, own = _Bare(), _Wrapped(), _Ours()
    off = profile_memory(sample_every=_NEVER)
    budgeted = memory_budget("1 GiB", sample_every=_NEVER)(_plain)
    cases: list[tuple[str, Any, Any, Any, Any]] = [
        ("function", _calls, _plain, pass_through(_plain), off(_plain)),
        ("method", _method_calls, bare, wrapped, own),
        ("coroutine function", _awaits, _coroutine, pass_through(_coroutine), off(_coroutine)),
        ("coroutine method", _method_awaits, bare, wrapped, own),
        ("function under a budget", _calls, _plain, pass_through(_plain), budgeted),
    ]
    results: list[Result] = []
    for title, loop, *three in cases:
        loops = dict(zip(("bare", "pass-through", "own"), (loop(target) for target in three), strict=True))
        timing = compare({"loop": _loop, **loops}, number=3, rounds=rounds, baseline="pass-through")
        bare_ns = timing.median_ns("bare") - timing.median_ns("loop")
        note = f"time per call, net of the loop; the bare call is {bare_ns / _TURNS:.0f} ns here"
        results.append(Result(f"off sample: {title}", "wrapt's pass-through", _net(timing), 1.0, note))
    return [*results, *_measured(rounds)]


def _measured(rounds: int) -> list[Result]:
    # For information: what a measured call costs, where nothing else is traced. The bound is generous on purpose.
    profiled = profile_memory(log=None, meter="rss")(_plain)
    remembered = bounded_history(1000, keep=750, meter="rss")(_plain)
    timing = compare(
        {
            "pass-through": _calls(pass_through(_plain)),
            "profile_memory": _calls(profiled),
            "bounded_history": _calls(remembered),
        },
        number=1,
        rounds=rounds,
        baseline="pass-through",
    )
    return [
        Result(
            f"measured by the rss meter: {name}",
            "wrapt's pass-through",
            timing.ratio(name),
            100.0,
            f"time per call; {timing.median_ns(name) / _TURNS / 1000:.1f} us here",
        )
        for name in ("profile_memory", "bounded_history")
    ]


def _net(timing: Timing) -> float:
    pairs = zip(timing.rounds_ns["own"], timing.rounds_ns["pass-through"], timing.rounds_ns["loop"], strict=True)
    return statistics.median((own - loop) / (peer - loop) for own, peer, loop in pairs)


def _loop() -> None:
    for _ in range(_TURNS):
        pass


def _calls(function: Callable[[int], int]) -> Callable[[], None]:
    def loop() -> None:
        for _ in range(_TURNS):
            function(1)

    return loop


def _method_calls(thing: Any) -> Callable[[], None]:
    def loop() -> None:
        for _ in range(_TURNS):
            thing.plain(1)

    return loop


def _awaits(function: Callable[[int], Coroutine[Any, Any, int]]) -> Callable[[], None]:
    async def loop() -> None:
        for _ in range(_TURNS):
            await function(1)

    return lambda: _finish(loop())


def _method_awaits(thing: Any) -> Callable[[], None]:
    async def loop() -> None:
        for _ in range(_TURNS):
            await thing.coroutine(1)

    return lambda: _finish(loop())


def _finish(coroutine: Coroutine[Any, Any, None]) -> None:
    # Nothing waits in it: the first step is the last, and no event loop is in the figure.
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it was to end in one step")


if __name__ == "__main__":
    print_results(run())
