"""The choice of a meter, by argument, environment or default.

A further meter is one more entry in `_FACTORIES`. A file of its own because it loads a meter only when it is chosen.
"""

import logging
import os
from collections.abc import Callable
from typing import Final

from memtools.errors import ConfigError
from memtools.ledger._owner import Meter, find_native
from memtools.ledger.meters._rss import RssMeter
from memtools.units import parse_choice


def _make_native() -> Meter:
    from memtools.ledger.meters._native import NativeMeter  # may not have been built

    return NativeMeter()


def _make_tracemalloc() -> Meter:
    from memtools.ledger.meters._tracemalloc import TracemallocMeter  # tracemalloc loads pickle

    return TracemallocMeter()


_FACTORIES: Final[dict[str, Callable[[], Meter]]] = {
    "native": _make_native,
    "tracemalloc": _make_tracemalloc,
    "rss": RssMeter,
}
_meters: dict[str, Meter] = {}
_is_warned = False
_log = logging.getLogger("memtools.budget")


def choose_meter(name: str | None = None) -> Meter:
    """Return the meter called `name`, else the one that `MEMTOOLS_METER` names, else the default.

    The default is `native` where it can be had (see `native_reason`), else `rss`. Where the native meter has
    stopped in the middle of a program, code that names it can still do so; its owners then say that their figures are
    not exact.

    Raises:
        ConfigError: for a name that no meter has, and for `native` or `tracemalloc` where it cannot be had.
    """
    origin = "meter"
    if name is None:
        name = os.environ.get("MEMTOOLS_METER")
        origin = "MEMTOOLS_METER"
    reason = native_reason()
    if not name and origin == "MEMTOOLS_METER":
        name = "rss" if reason else "native"
    can_be_asked = not reason or _has_stopped()
    names = tuple(known for known in _FACTORIES if known != "native" or can_be_asked)
    if name == "native" and not can_be_asked:
        raise ConfigError(origin, name, f"{' or '.join(map(repr, names))}; there is no 'native' here: {reason}")
    chosen = parse_choice(name, names, name=origin)
    try:
        return _get_or_create(chosen)
    except ImportError as error:  # tracemalloc in a sub-interpreter, since Python 3.14
        others = " or ".join(repr(known) for known in names if known != chosen)
        raise ConfigError(origin, name, f"{others}; there is no {chosen!r} here: {error}") from error


def native_reason() -> str:
    """Return why the native meter cannot be had in this process, empty if it can.

    The first call installs its hooks, which pass through until an owner is opened, and checks that they count right.
    """
    if "native" not in _meters and os.environ.get("MEMTOOLS_NATIVE") == "0":
        return "MEMTOOLS_NATIVE=0"
    module, why_missing = find_native()
    if module is None:
        return why_missing
    reason: str = module.reason()
    if not reason:
        _get_or_create("native")
        reason = module.reason()
    return reason


def warn_without_native() -> None:
    """Log once in a process that there is no native meter, so that budgets rarely stop what exceeds them."""
    global _is_warned
    if _is_warned:
        return
    _is_warned = True
    reason = native_reason()
    if reason:
        _log.warning(
            "Memory budgets are checked without the native ledger here: %s. Nothing is stopped in the middle of a "
            "call, and figures that are not exact only lead to a warning (inexact='raise' raises all the same). The "
            "native ledger is built where pip finds a C compiler; see `python -m memtools info`",
            reason,
        )


def _has_stopped() -> bool:
    module, _ = find_native()
    return "native" in _meters and module is not None and bool(module.has_stopped())


def _get_or_create(name: str) -> Meter:
    meter = _meters.get(name)
    return meter if meter is not None else _meters.setdefault(name, _FACTORIES[name]())


def existing_meters() -> tuple[Meter, ...]:
    """Return the meters that were asked for so far."""
    return tuple(_meters.values())
