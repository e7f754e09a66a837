"""One function under test: what was asked about it, its calls, the report.

Covers: checking what was asked, plain and coroutine functions, calls one after another and at once, the account that
they are charged to, the search for who holds what grows.
Leaves to others: how often it is called (`_hunt`), what is counted (`_signals`), who holds it (`_culprits`).
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from memtools.errors import ConfigError
from memtools.ledger import Meter, active_owner, install
from memtools.scopes import memory_scope
from memtools.testing._exactness import exact_meter
from memtools.testing._hunt import Hunt, Pace
from memtools.testing._reports import LeakReport
from memtools.testing._signals import ENOUGH_BYTES, signals_of
from memtools.units import parse_count, parse_seconds

if TYPE_CHECKING:
    from memtools.testing._culprits import Culprits

_MOST_COUNTED_CALLS: Final = 4096  # between two counts of the heap
_COUNTED_S: Final = 1.0  # that they may take

Asked: TypeAlias = Callable[..., Coroutine[Any, Any, object]]  # Any: what a coroutine exchanges with its loop
# Told after each round, and once before the first: how many are done, how many calls were made, what is alive of them.
Tell: TypeAlias = Callable[[int, int, int], object]


def parse_pace(rounds: int, calls: int, warmup: int, patience_s: float, deadline_s: float) -> Pace:
    """Return how long a hunt goes on.

    Raises:
        ConfigError: for numbers that make no sense.
    """
    return Pace(
        parse_count(rounds, name="rounds"),
        parse_count(calls, name="calls"),
        parse_count(warmup, name="warmup", least=0),
        parse_seconds(patience_s, name="patience_s"),
        parse_seconds(deadline_s, name="deadline_s"),
    )


class Case:
    """One function under test, with everything that was asked about it, checked.

    Args:
        function: a plain function or a coroutine function.
        args: its positional arguments.
        kwargs: its named arguments.
        pace: how long it is called.
        tolerance: bytes per call that are no growth.
        meter: the name of who counts, None for the most exact one.
        most_bytes: growth after which it is called no more.
        at_once: how many calls of a coroutine function run at the same time.

    Raises:
        ConfigError: for what cannot be called, or makes no sense.
    """

    def __init__(
        self,
        function: Callable[..., object],
        args: Sequence[object],
        kwargs: Mapping[str, object] | None,
        pace: Pace,
        tolerance: float,
        meter: str | None,
        *,
        most_bytes: int = ENOUGH_BYTES,
        at_once: int = 1,
    ) -> None:
        if not callable(function):
            raise ConfigError("function", function, "a function or a coroutine function")
        self.function = function
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.name = str(getattr(function, "__qualname__", type(function).__qualname__))
        self.tolerance = parse_seconds(tolerance, name="tolerance")
        self.pace = pace
        self.meter = exact_meter(meter)
        self.most_bytes = most_bytes
        self.at_once = at_once
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            vars(type(function)).get("__call__")
        )
        self._hunt: Hunt | None = None
        self._begun = 0.0

    def run(self, tell: Tell | None) -> LeakReport:
        """Call a plain function until it is clear what it leaves behind."""
        self._begun = time.perf_counter()
        with memory_scope(self.name, meter=self.meter.name):
            self._call(self._plan(tell))
        culprits = self._culprits()
        if culprits is not None:
            self._call(culprits.plan())
        return self._report(culprits)

    async def run_async(self, tell: Tell | None) -> LeakReport:
        """Call a coroutine function until it is clear what it leaves behind."""
        self._begun = time.perf_counter()
        with _followed(self.meter):
            # Decorated: a scope that is opened inside a coroutine is followed from Python 3.12 on only.
            await memory_scope(self.name, meter=self.meter.name)(self._await_calls)(lambda: self._plan(tell))
        # No longer followed: counting the heap while tracemalloc traces takes ten times as long.
        culprits = self._culprits()
        if culprits is not None:
            await self._await_calls(culprits.plan)
        return self._report(culprits)

    def _plan(self, tell: Tell | None) -> Iterator[int]:
        owner = active_owner()
        assert owner is not None  # whoever runs this has opened one
        self._hunt = Hunt(signals_of(owner, self.tolerance, self.most_bytes), self.pace, tell)
        yield from self._hunt.plan()

    def _call(self, plan: Iterator[int]) -> None:
        function, args, kwargs = self.function, self.args, self.kwargs
        for calls in plan:
            for _ in repeat(None, calls):
                result = function(*args, **kwargs)
                if type(result) is CoroutineType:
                    result.close()
                    raise ConfigError("function", function, "a coroutine function: this one only returns a coroutine")
                del result

    async def _await_calls(self, plan: Callable[[], Iterator[int]]) -> None:
        for calls in plan():
            turns = repeat(None, calls)
            if self.at_once == 1:
                await self._await_each(turns)
                continue
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.at_once, calls)):
                    group.create_task(self._await_each(turns))

    async def _await_each(self, turns: Iterator[None]) -> None:
        function, args, kwargs = cast("Asked", self.function), self.args, self.kwargs
        for _ in turns:
            await function(*args, **kwargs)

    def _culprits(self) -> "Culprits | None":
        assert self._hunt is not None  # the plan has been run
        if self._hunt.is_clean:
            return None
        calls = self._hunt.calls
        per_second = calls / max(time.perf_counter() - self._begun, 1e-3)
        from memtools.testing._culprits import Culprits  # it loads the heap: only where something grows

        return Culprits(max(self.pace.calls, min(_MOST_COUNTED_CALLS, calls, int(per_second * _COUNTED_S))))

    def _report(self, culprits: "Culprits | None") -> LeakReport:
        assert self._hunt is not None  # as above
        from memtools.testing._summing_up import sum_up  # as above

        return sum_up(self.name, self._hunt, culprits, self.meter.name, time.perf_counter() - self._begun)


def _followed(meter: Meter) -> AbstractContextManager[object]:
    try:
        return install(meter=meter.name)  # tasks that the function starts are its own
    except ConfigError:
        return nullcontext()  # the loop is followed already
