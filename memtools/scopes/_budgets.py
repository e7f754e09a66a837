"""Hold what an owner used against what it was meant to use: the warning, and the budget at its end.

Leaves to others: budgets while an owner is open (`memtools.ledger`).
"""

import logging
from typing import cast

from memtools.errors import BudgetExceeded, ConfigError
from memtools.events import HighUsage, emit
from memtools.ledger import Budget, Meter, Owner, Usage, native_reason
from memtools.ledger._owner import OnExceed
from memtools.readings import effective_limit
from memtools.units import format_size, parse_choice, parse_size

_log = logging.getLogger("memtools.scopes")


def parse_budget(value: object, *, name: str) -> int:
    """Return a size in bytes, or a share of the effective limit (`"80%"`) in bytes.

    Raises:
        ConfigError: for anything else.
    """
    return parse_size(value, name=name, percent_of=lambda: effective_limit().value_bytes)


def make_budget(
    limit: object, *, name: str = "budget", measure: object = "peak", on_exceed: object = "raise", hard: bool = True
) -> Budget:
    """Return a checked budget; `name` is what the caller calls its limit.

    Raises:
        ConfigError: for a limit, measure or on_exceed that makes no sense.
    """
    limit_bytes = parse_budget(limit, name=name)
    parse_choice(measure, ("peak", "retained", "rss"), name="measure")
    if not callable(on_exceed) and on_exceed not in ("raise", "warn", "deny"):
        raise ConfigError("on_exceed", on_exceed, "'raise', 'warn', 'deny' or a callable that takes the error")
    if on_exceed == "deny" and (measure != "peak" or not hard):
        raise ConfigError(
            "on_exceed", on_exceed, "it with measure='peak' and hard=True: only what grows can be refused"
        )
    return Budget(limit_bytes, measure, cast("OnExceed", on_exceed), hard)  # type: ignore[arg-type]  # checked above


def require_refusals(meter: Meter, budget: Budget | None) -> None:
    """Make sure that the meter can refuse, where the budget is to.

    Raises:
        ConfigError: where it cannot, with the reason.
    """
    if budget is not None and budget.on_exceed == "deny" and meter.name != "native":
        why = native_reason() or f"the meter is {meter.name!r}"
        raise ConfigError("on_exceed", "deny", f"it with meter='native', the only one that can refuse; here {why}")


def check_usage(
    owner: Owner, usage: Usage, *, warn_bytes: int | None, failed: bool, error: BaseException | None = None
) -> None:
    """Warn about an ended owner, and raise if it was over its budget.

    An owner that failed is told about but not raised for: its own exception goes first. The one exception is a
    `MemoryError` where a block was refused that would have taken it over its budget and the grace: that is what its
    budget looks like from inside C code.

    Raises:
        BudgetExceeded: when it used more than its budget, did not fail, and has not been stopped for it before.
    """
    if warn_bytes is not None and usage.peak_bytes > warn_bytes:
        _warn(owner, usage, warn_bytes)

    budget = owner.budget
    if budget is not None:
        _judge_refusals(owner, budget, error)
    if budget is None or owner.exceeded_reported:
        return
    used = _measured(usage, budget)
    if used <= budget.limit_bytes:
        return
    overrun = budget.report_exceeded(owner, used, in_flight=False)
    if overrun is not None and not failed:
        raise overrun


def _judge_refusals(owner: Owner, budget: Budget, error: BaseException | None) -> None:
    refused, wanted = owner.refusals
    if not refused:
        return
    if not owner.exceeded_reported:
        budget.report_refusal(owner, wanted)
    if isinstance(error, MemoryError) and budget.on_exceed == "raise":
        raise BudgetExceeded(owner.name, wanted, budget.limit_bytes, budget.measure) from error


def _measured(usage: Usage, budget: Budget) -> int:
    if budget.measure == "retained":
        return usage.retained_bytes
    if budget.measure == "rss":
        return usage.resident_delta_bytes
    return usage.peak_bytes


def _warn(owner: Owner, usage: Usage, warn_bytes: int) -> None:
    below = ", ".join(f"{name} {format_size(size)}" for name, size in owner.largest_children)
    emit(HighUsage(owner.name, owner.kind, usage.peak_bytes, warn_bytes, owner.largest_children))
    _log.warning(
        "High memory increase: %s used %s, warning at %s%s%s",
        owner.name,
        format_size(usage.peak_bytes),
        format_size(warn_bytes),
        f" ({usage.note})" if usage.note else "",
        f"; largest below it: {below}" if below else "",
    )
