"""Budgets and warnings of scopes, calls and tasks: parsed, and checked when the owner has ended."""

import logging
import sys
import warnings
from typing import Final, cast

from memtools.errors import BudgetExceeded, ConfigError, MemtoolsWarning
from memtools.events import HighUsage, emit
from memtools.ledger import Budget, Meter, Owner, Usage, native_reason
from memtools.ledger._owner import BudgetStop, OnExceed, unheeded_stops
from memtools.readings import effective_limit
from memtools.units import format_size, parse_choice, parse_size

_log = logging.getLogger("memtools.scopes")

# Where `list.append` frees the new item twice and `bytearray` loses its content when a block is refused.
_HARMED_BY_REFUSALS: Final = frozenset({(3, 15)})
# By name, so that neither asyncio nor trio has to be loaded for it.
_PASSING: Final = frozenset({"GeneratorExit", "CancelledError", "Cancelled"})


def parse_budget(value: object, *, name: str) -> int:
    """Return a size in bytes, from a size or a share of the effective limit (`"80%"`).

    Args:
        value: the size or share.
        name: the argument that it was given for, for the error.

    Raises:
        ConfigError: for anything else.
    """
    return parse_size(value, name=name, percent_of=lambda: effective_limit().value_bytes)


def make_budget(
    limit: object,
    *,
    name: str = "budget",
    measure: object = "peak",
    on_exceed: object = "raise",
    hard: bool = True,
    inexact: object = "warn",
) -> Budget:
    """Return a budget of checked arguments.

    Args:
        limit: a size, or a share of the effective limit.
        name: the argument that the limit was given for, for the error.
        measure: the figure that is compared with the limit.
        on_exceed: what follows when it is exceeded.
        hard: whether it is checked while the owner is open, too.
        inexact: what follows when a figure that is not exact exceeds it.

    Raises:
        ConfigError: for an invalid argument.

    Warns:
        MemtoolsWarning: for `"deny"` on a Python that does not survive it; the budget is then one that raises.
    """
    limit_bytes = parse_budget(limit, name=name)
    parse_choice(measure, ("peak", "retained", "rss"), name="measure")
    if not callable(on_exceed) and on_exceed not in ("raise", "warn", "deny"):
        raise ConfigError("on_exceed", on_exceed, "'raise', 'warn', 'deny' or a callable that takes the error")
    if on_exceed == "deny" and (measure != "peak" or not hard):
        raise ConfigError(
            "on_exceed", on_exceed, f"requires measure='peak' and hard=True (measure is {measure!r}, hard is {hard})"
        )
    parse_choice(inexact, ("warn", "raise"), name="inexact")
    if on_exceed == "deny" and sys.version_info[:2] in _HARMED_BY_REFUSALS:
        warnings.warn(
            f"on_exceed='deny' is treated as 'raise' on Python {sys.version_info.major}.{sys.version_info.minor}: "
            "its own code frees objects twice after a refused block",
            MemtoolsWarning,
            stacklevel=3,
        )
        on_exceed = "raise"
    return Budget(limit_bytes, measure, cast("OnExceed", on_exceed), hard, inexact)  # type: ignore[arg-type]  # checked above


def require_refusals(meter: Meter, budget: Budget | None) -> None:
    """Make sure that the meter can refuse blocks, if the budget is to deny them.

    Raises:
        ConfigError: for a meter other than `"native"`, with the reason why it was chosen.
    """
    if budget is not None and budget.on_exceed == "deny" and meter.name != "native":
        reason = native_reason() or f"meter is {meter.name!r}"
        raise ConfigError("on_exceed", "deny", f"requires meter='native' ({reason})")


def check_usage(
    owner: Owner, usage: Usage, *, warn_bytes: int | None, failed: bool, error: BaseException | None = None
) -> None:
    """Warn about an ended owner whose peak was high, and raise if it exceeded its budget.

    If the owner failed, its own exception passes, and the exceeded budget is only reported. That is different where
    the budget has caused the exception, or may have: after a block was refused, which C code reports in many forms, and
    after the owner was stopped a second time. `BudgetExceeded` is then raised from it, but for the exceptions by which
    a task is cancelled, a generator closed or the program ended.

    Args:
        owner: the owner.
        usage: its final usage.
        warn_bytes: a higher peak is logged and emitted as `HighUsage`; None for no warning.
        failed: whether the owner ended with an exception.
        error: that exception, where it is known.

    Raises:
        BudgetExceeded: when the owner exceeded its budget, did not fail, and was not stopped for it before; and in the
            place of what the budget has caused.
    """
    if warn_bytes is not None and usage.peak_bytes > warn_bytes:
        _warn_of_high_usage(owner, usage, warn_bytes)

    budget = owner.budget
    if budget is not None:
        _replace_error(owner, usage, budget, failed, error)
    if budget is None or owner.exceeded_reported:
        return
    used = _budgeted_figure(usage, budget)
    if used <= budget.limit_bytes:
        return
    exceeded = budget.report_exceeded(owner, used, in_flight=False)
    if exceeded is not None and not failed:
        raise exceeded


def _replace_error(owner: Owner, usage: Usage, budget: Budget, failed: bool, error: BaseException | None) -> None:
    refused, wanted = owner.refusals
    if refused and not owner.exceeded_reported:
        budget.report_refusal(owner, wanted)
    is_unheeded = owner in unheeded_stops
    if not is_unheeded and not (refused and failed):
        return
    if isinstance(error, BudgetExceeded) or _ends_more_than_owner(error, owner):
        return
    used = max(wanted, _budgeted_figure(usage, budget))
    raise BudgetExceeded(owner.name, used, budget.limit_bytes, budget.measure) from error


def _ends_more_than_owner(error: BaseException | None, owner: Owner) -> bool:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return any(_ends_more_than_owner(one, owner) for one in group.exceptions)
    if isinstance(error, BudgetStop):
        return not error.is_for(owner)  # an outer owner is stopped
    return isinstance(error, KeyboardInterrupt | SystemExit) or type(error).__name__ in _PASSING


def _budgeted_figure(usage: Usage, budget: Budget) -> int:
    if budget.measure == "retained":
        return usage.retained_bytes
    if budget.measure == "rss":
        return usage.resident_delta_bytes
    return usage.peak_bytes


def _warn_of_high_usage(owner: Owner, usage: Usage, warn_bytes: int) -> None:
    children = ", ".join(f"{name} {format_size(size)}" for name, size in owner.largest_children)
    emit(HighUsage(owner.name, owner.kind, usage.peak_bytes, warn_bytes, owner.largest_children))
    _log.warning(
        "High peak: %s used %s, warning size %s%s%s",
        owner.name,
        format_size(usage.peak_bytes),
        format_size(warn_bytes),
        f" ({usage.note})" if usage.note else "",
        f"; largest children: {children}" if children else "",
    )
