"""`@memory_budget`: how much may a call use, and what follows when it uses more?"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from memtools.decorators._wrapping import (
    Decorated,
    detour_for,
    is_enabled,
    is_layered,
    name_of,
    over_descriptors,
    shape_of,
)
from memtools.ledger import Owner, choose_meter
from memtools.ledger._ledger import current_usage
from memtools.ledger._owner import Measure, OnExceed
from memtools.scopes import CallOptions, check_usage, make_budget, require_refusals
from memtools.units import parse_count

P = ParamSpec("P")
R = TypeVar("R")


def memory_budget(
    budget: int | str,
    *,
    measure: Measure = "peak",
    on_exceed: OnExceed = "raise",
    sample_every: int = 1,
    hard: bool = True,
    meter: str | None = None,
    enabled: bool | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Hold the calls of a function to a budget, each call by itself.

    A coroutine is looked at after each of its steps: the step that crosses the budget is the last, and
    `BudgetExceeded` is raised where it awaits. A plain function is looked at when it ends.

    ```python
    @memory_budget("50 MiB", meter="tracemalloc")
    def load() -> bytes:
        return bytes(1_000_000)

    load()
    ```

    Args:
        budget: bytes, text such as `"50 MiB"`, or a share of the effective limit such as `"10%"`.
        measure: the figure that is held against it: `"peak"` (highest live bytes), `"retained"` (alive at the end) or
            `"rss"` (growth of the whole process's resident memory). The last two are looked at in the end.
        on_exceed: `"raise"`; `"deny"` (the same, but a single large block that would exceed the budget is refused: a
            `MemoryError` where it would have been made; native meter only); `"warn"` (the log says "High memory
            increase"); or a callable that is given the `BudgetExceeded`; what the callable raises is logged.
        sample_every: look at every so manieth call, the first one included.
        hard: False looks at the end only.
        meter: `"native"`, `"tracemalloc"` or `"rss"`; by default `MEMTOOLS_METER`, else `"native"` where it was built,
            else `"rss"`; read when decorating.
        enabled: False returns the bare function; by default `MEMTOOLS_ENABLED`, else True.

    Raises:
        ConfigError: when decorating, for an argument that makes no sense, and for `"deny"` without the native meter.
        BudgetExceeded: in a call that is over its budget, unless it raises something itself.
    """
    chosen_budget = make_budget(budget, name="budget", measure=measure, on_exceed=on_exceed, hard=hard)
    parse_count(sample_every, name="sample_every")
    chosen = choose_meter(meter)
    require_refusals(chosen, chosen_budget)

    def on_end(owner: Owner, error: BaseException | None) -> None:
        check_usage(owner, current_usage(owner), warn_bytes=None, failed=error is not None, error=error)

    def decorate(function: Any) -> Any:
        shape = shape_of(function)
        if not is_enabled(enabled):
            return function
        plan = CallOptions(
            name_of(function), "call", chosen, budget=chosen_budget, is_layered=is_layered(function), on_end=on_end
        )
        return Decorated(function, detour_for(shape, plan, function), sample=sample_every)

    return over_descriptors(decorate)
