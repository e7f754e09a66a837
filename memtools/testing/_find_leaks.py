"""Find out whether a function leaks: call it, count, call it more.

Covers: what can be chosen, the report; `assert_no_leaks`, which raises.
Leaves to others: the calls (`_case`), how often (`_hunt`), what is counted (`_signals`), who holds it (`_culprits`).
"""

import logging
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast, overload

from memtools.analysis import Answer
from memtools.errors import LeakError, LeakWarning
from memtools.testing._case import Asked, Case, Tell, parse_pace
from memtools.testing._progress import Progress
from memtools.testing._reports import LeakReport
from memtools.testing._signals import BYTES_TOLERANCE

_log = logging.getLogger("memtools.testing")


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
    pace = parse_pace(rounds, calls, warmup, patience_s, deadline_s)
    case = Case(function, args, kwargs, pace, tolerance, meter)
    return _find_async(case, progress) if case.is_async else _find(case, progress)


def _find(case: Case, progress: bool) -> LeakReport:
    shown = Progress(is_wanted=progress)
    try:
        return case.run(_teller(case, shown))
    finally:
        shown.end()


async def _find_async(case: Case, progress: bool) -> LeakReport:
    shown = Progress(is_wanted=progress)
    try:
        return await case.run_async(_teller(case, shown))
    finally:
        shown.end()


def _teller(case: Case, shown: Progress) -> Tell | None:
    if not shown.is_shown:
        return None
    return lambda rounds, calls, _: shown.show(f"{case.name}: round {rounds}, {calls:,} calls")


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
