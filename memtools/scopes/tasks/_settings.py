"""The arguments of `task_scope`, checked."""

from typing import Final

from memtools.errors import ConfigError
from memtools.ledger import Budget, Meter, choose_meter
from memtools.records import record
from memtools.scopes._judging import make_budget, parse_limit
from memtools.scopes._naming import parse_name
from memtools.scopes.tasks._admission import Admission, parse_admission
from memtools.units import parse_choice, parse_count, parse_seconds

DEFAULT_NAME: Final = "task_scope"


@record
class TaskScopeSettings:
    """What a task scope was told to do.

    Attributes:
        name: what reports call it.
        limit: how many tasks may run at once, or None.
        max_pending: how many may wait, or None.
        records_errors: whether failures are recorded, and not raised.
        cancels_on_exit: whether leaving the block cancels what runs.
        grace_s: how long cancelled tasks are waited for, in seconds.
        keep_results: how many results are kept.
        admission: whom to ask before a task starts: an admission, a size in bytes, or None.
        budget: what the scope may use, or None.
        warn_bytes: the peak above which a warning is given, or None.
        meter: who counts.
    """

    name: str
    limit: int | None
    max_pending: int | None
    records_errors: bool
    cancels_on_exit: bool
    grace_s: float
    keep_results: int
    admission: Admission | int | None
    budget: Budget | None
    warn_bytes: int | None
    meter: Meter


def read_settings(
    *,
    limit: object,
    on_error: object,
    on_exit: object,
    grace: object,
    keep_results: object,
    admit: object,
    name: object,
    budget: object,
    warn: object,
    max_pending: object,
    meter: str | None,
) -> TaskScopeSettings:
    """Return the checked arguments.

    Raises:
        ConfigError: for one that makes no sense.
    """
    admission = parse_admission(admit)
    if max_pending is not None and limit is None and admission is None:
        raise ConfigError("max_pending", max_pending, "it together with limit= or admit=: nothing waits without them")
    return TaskScopeSettings(
        name=DEFAULT_NAME if name is None else parse_name(name),
        limit=_optional_count(limit, "limit", least=1),
        # Behind an admission every task waits until it has been asked, be it for a moment.
        max_pending=_optional_count(max_pending, "max_pending", least=0 if admission is None else 1),
        records_errors=parse_choice(on_error, ("cancel", "record"), name="on_error") == "record",
        cancels_on_exit=parse_choice(on_exit, ("join", "cancel"), name="on_exit") == "cancel",
        grace_s=parse_seconds(grace, name="grace"),
        keep_results=parse_count(keep_results, name="keep_results", least=0),
        admission=admission,
        budget=None if budget is None else make_budget(budget),
        warn_bytes=None if warn is None else parse_limit(warn, name="warn"),
        meter=choose_meter(meter),
    )


def _optional_count(value: object, name: str, *, least: int) -> int | None:
    return None if value is None else parse_count(value, name=name, least=least)
