"""`@memory_budget`: limit the memory of each call of a function.

A file of its own because each decorator has one.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from memtools._suggestions import suggest_arguments
from memtools.decorators._decoration import accept_descriptors, decorate_callable, is_enabled, report_name
from memtools.ledger import Owner, choose_meter
from memtools.ledger._ledger import current_usage
from memtools.ledger._owner import Inexact, Measure, OnExceed
from memtools.scopes._budgets import check_usage, make_budget, require_refusals
from memtools.scopes._calls import CallOptions
from memtools.scopes._functions import call_kind, is_wrapped
from memtools.units import parse_count

P = ParamSpec("P")
R = TypeVar("R")


@suggest_arguments(limit="budget", max_bytes="budget", sample="sample_every")
def memory_budget(
    budget: int | str,
    *,
    measure: Measure = "peak",
    on_exceed: OnExceed = "raise",
    inexact: Inexact = "warn",
    sample_every: int = 1,
    hard: bool = True,
    meter: str | None = None,
    enabled: bool | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Limit the memory of each call of a function.

    The budget of a coroutine is checked after each of its steps: the step that exceeds it is the last, and
    `BudgetExceeded` is raised where the coroutine awaits. That of a plain function is checked when the call ends, and
    with the native meter while it runs (see `docs/ledger.md`).

    ```python
    @memory_budget("50 MiB", meter="tracemalloc")
    def load() -> bytes:
        return bytes(1_000_000)

    load()
    ```

    Args:
        budget: bytes, text such as `"50 MiB"`, or a share of the effective limit such as `"10%"`.
        measure: the figure that is compared with the budget: `"peak"` (highest live bytes), `"retained"` (live at the
            end) or `"rss"` (growth of the whole process's resident memory). The last two are checked at the end only.
        on_exceed: `"raise"`; `"deny"` (the same, but a single large block that would exceed the budget is refused: a
            `MemoryError` where the block would have been allocated; native meter only); `"warn"` (logs a warning); or a
            callable that gets the `BudgetExceeded`; an exception of the callable is logged.
        inexact: what follows when a figure that is not exact (`usage.exact` is False) exceeds the budget: `"warn"` (a
            warning in the log, once, with the reason) or `"raise"`.
        sample_every: check every n-th call, starting with the first.
        hard: False checks at the end only.
        meter: `"native"`, `"tracemalloc"` or `"rss"`; by default `MEMTOOLS_METER`, else `"native"` where it was built,
            else `"rss"`; read when the function is decorated.
        enabled: False returns the bare function; by default `MEMTOOLS_ENABLED`, else True.

    Raises:
        ConfigError: when decorating, for an invalid argument, and for `"deny"` without the native meter.
        BudgetExceeded: in a call that exceeds its budget, unless the call raises another exception.
    """
    parsed_budget = make_budget(budget, measure=measure, on_exceed=on_exceed, hard=hard, inexact=inexact)
    parse_count(sample_every, name="sample_every")
    chosen = choose_meter(meter)
    require_refusals(chosen, parsed_budget)

    def decorate(function: Any) -> Any:
        call_kind(function)  # refuses what is no function
        if not is_enabled(enabled):
            return function

        options = CallOptions(
            report_name(function),
            "call",
            chosen,
            budget=parsed_budget,
            is_stacked=is_wrapped(function),
            on_end=_check,
        )
        return decorate_callable(function, options, {}, sample_every=sample_every)

    return accept_descriptors(decorate)


def _check(owner: Owner, error: BaseException | None) -> None:
    check_usage(owner, current_usage(owner), warn_bytes=None, failed=error is not None, error=error)
