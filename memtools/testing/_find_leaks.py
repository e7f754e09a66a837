"""Find out whether a function leaks: call it, count, call it more.

Covers: plain functions and coroutine functions, their arguments, the report; `assert_no_leaks`, which raises.
Leaves to others: how often it is called (`_hunt`), what is counted (`_signals`), who holds it (`_culprits`).
"""

import inspect
import logging
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from types import CoroutineType
from typing import Any, Final, TypedDict, Unpack, cast, overload

from memtools.analysis import Answer
from memtools.errors import ConfigError, LeakError, LeakWarning
from memtools.ledger import Meter, active_owner, install
from memtools.scopes import memory_scope
from memtools.testing._culprits import Culprits
from memtools.testing._exactness import exact_meter
from memtools.testing._hunt import Hunt, Pace, progress_on_terminal
from memtools.testing._reports import LeakReport
from memtools.testing._signals import BYTES_TOLERANCE, signals_of
from memtools.testing._summing_up import sum_up
from memtools.units import parse_count, parse_seconds

_log = logging.getLogger("memtools.testing")

_MOST_COUNTED_CALLS: Final = 4096  # between two counts of the heap
_COUNTED_S: Final = 1.0  # that they may take

Asked = Callable[..., Coroutine[Any, Any, object]]  # Any: what a coroutine exchanges with its loop


class _Case:
    """One function under test, with everything that was asked about it, checked."""

    def __init__(
        self,
        function: Callable[..., object],
        args: Sequence[object],
        kwargs: Mapping[str, object] | None,
        pace: Pace,
        tolerance: float,
        meter: str | None,
    ) -> None:
        if not callable(function):
            raise ConfigError("function", function, "a function or a coroutine function")
        self.function = function
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.name = str(getattr(function, "__qualname__", type(function).__qualname__))
        self.tolerance = tolerance
        self.pace = pace
        self.meter = exact_meter(meter)
        self.hunt: Hunt | None = None
        self.begun = time.perf_counter()

    def plan(self, progress: bool) -> Iterator[int]:
        """Yield how many calls to make next; to be run while the owner of the calls is active."""
        owner = active_owner()
        assert owner is not None  # whoever runs this has opened one
        tell = progress_on_terminal(self.name) if progress else None
        self.hunt = Hunt(signals_of(owner, self.tolerance), self.pace, tell)
        yield from self.hunt.plan()
        if tell is not None:
            tell(0, self.hunt.calls)

    def culprits(self) -> Culprits | None:
        """Return the search for who holds what grows, None where nothing does."""
        assert self.hunt is not None  # the plan has been run
        if self.hunt.is_clean:
            return None
        per_second = self.hunt.calls / max(time.perf_counter() - self.begun, 1e-3)
        return Culprits(max(self.pace.calls, min(_MOST_COUNTED_CALLS, self.hunt.calls, int(per_second * _COUNTED_S))))

    def report(self, culprits: Culprits | None) -> LeakReport:
        """Return what was found."""
        assert self.hunt is not None  # as above
        return sum_up(self.name, self.hunt, culprits, self.meter.name, time.perf_counter() - self.begun)


class Choices(TypedDict, total=False):
    """What can be chosen about a hunt; see `find_leaks`."""

    args: Sequence[object]
    kwargs: Mapping[str, object] | None
    rounds: int
    calls: int
    warmup: int
    tolerance: float
    patience_s: float
    deadline_s: float
    meter: str | None
    progress: bool


# A coroutine function is a function that returns a coroutine: the first form that fits is meant.
@overload
def find_leaks(  # type: ignore[overload-overlap]
    function: Asked,  # pyright: ignore[reportOverlappingOverload]
    **choices: Unpack[Choices],
) -> Coroutine[Any, Any, LeakReport]: ...


@overload
def find_leaks(function: Callable[..., object], **choices: Unpack[Choices]) -> LeakReport: ...


def find_leaks(
    function: Callable[..., object],
    *,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    rounds: int = 5,
    calls: int = 50,
    warmup: int = 2,
    tolerance: float = BYTES_TOLERANCE,
    patience_s: float = 1.0,
    deadline_s: float = 30.0,
    meter: str | None = None,
    progress: bool = True,
) -> LeakReport | Coroutine[Any, Any, LeakReport]:
    """Call `function` again and again, and report what grows with each call and who holds it.

    Bytes are counted for this function alone, tasks, threads, descriptors and native memory for the process. A clean
    function is called `warmup + rounds * calls` times. Where something grows, the calls go on in ever longer rounds
    until it has stopped, or is a leak.

    Args:
        function: a plain function, or a coroutine function: then the result is to be awaited.
        args: its positional arguments.
        kwargs: its named arguments.
        rounds: rounds before the first verdict.
        calls: calls in each of them.
        warmup: calls before anything is counted.
        tolerance: bytes per call that are no growth.
        patience_s: seconds that it goes on at least once something grows, or 20,000 calls: a cache may fill up.
        deadline_s: seconds after which what is not clear is inconclusive.
        meter: who counts the bytes; by default native where it was built, else traced.
        progress: whether to show the progress where standard error is a terminal.

    Raises:
        ConfigError: for arguments that make no sense, before anything is called.
        Exception: whatever `function` raises.
    """
    pace = Pace(
        parse_count(rounds, name="rounds"),
        parse_count(calls, name="calls"),
        parse_count(warmup, name="warmup", least=0),
        parse_seconds(patience_s, name="patience_s"),
        parse_seconds(deadline_s, name="deadline_s"),
    )
    case = _Case(function, args, kwargs, pace, parse_seconds(tolerance, name="tolerance"), meter)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(vars(type(function)).get("__call__")):
        return _find_async(case, progress)
    return _find(case, progress)


def _find(case: _Case, progress: bool) -> LeakReport:
    with memory_scope(case.name, meter=case.meter.name):
        _make_calls(case, case.plan(progress))
    culprits = case.culprits()
    if culprits is not None:
        _make_calls(case, culprits.plan())
    return case.report(culprits)


def _make_calls(case: _Case, plan: Iterator[int]) -> None:
    function, args, kwargs = case.function, case.args, case.kwargs
    for calls in plan:
        for _ in repeat(None, calls):
            result = function(*args, **kwargs)
            if type(result) is CoroutineType:
                result.close()
                raise ConfigError("function", function, "a coroutine function: this one only returns a coroutine")
            del result


async def _find_async(case: _Case, progress: bool) -> LeakReport:
    with _followed(case.meter):
        # Decorated: a scope that is opened inside a coroutine is followed from Python 3.12 on only.
        await memory_scope(case.name, meter=case.meter.name)(_await_calls)(case, lambda: case.plan(progress))
        culprits = case.culprits()
        if culprits is not None:
            await _await_calls(case, culprits.plan)
    return case.report(culprits)


async def _await_calls(case: _Case, plan: Callable[[], Iterator[int]]) -> None:
    function, args, kwargs = cast("Asked", case.function), case.args, case.kwargs
    for calls in plan():
        for _ in repeat(None, calls):
            await function(*args, **kwargs)


def _followed(meter: Meter) -> AbstractContextManager[object]:
    try:
        return install(meter=meter.name)  # tasks that the function starts are its own
    except ConfigError:
        return nullcontext()  # the loop is followed already


@overload
def assert_no_leaks(  # type: ignore[overload-overlap]  # as above
    function: Asked,  # pyright: ignore[reportOverlappingOverload]
    **choices: Unpack[Choices],
) -> Coroutine[Any, Any, LeakReport]: ...


@overload
def assert_no_leaks(function: Callable[..., object], **choices: Unpack[Choices]) -> LeakReport: ...


def assert_no_leaks(
    function: Callable[..., object], **choices: Unpack[Choices]
) -> LeakReport | Coroutine[Any, Any, LeakReport]:
    """Call `function` again and again, and raise if something grows with each call.

    What cannot be told from a leak in the time is a `LeakWarning`, and logged, as warnings of its kind are hidden.

    Args:
        function: as for `find_leaks`; for a coroutine function the result is to be awaited.
        choices: the named arguments of `find_leaks`.

    Raises:
        LeakError: what grew, per call, and who holds it.
        ConfigError: for arguments that make no sense, before anything is called.
        Exception: whatever `function` raises.
    """
    found: LeakReport | Coroutine[Any, Any, LeakReport] = cast("Any", find_leaks)(function, **choices)
    return _judge(found) if isinstance(found, LeakReport) else _judge_async(found)


async def _judge_async(hunt: Coroutine[Any, Any, LeakReport]) -> LeakReport:
    return _judge(await hunt)


def _judge(report: LeakReport) -> LeakReport:
    if report.is_leak:
        raise LeakError(report.tested, report.lines())
    if report.answer is Answer.INCONCLUSIVE:
        _log.warning("%s", report)
        warnings.warn(str(report), LeakWarning, stacklevel=3)
    return report
