"""Which meter counts in `python -m memtools run`: one that can tell tasks apart, unless somebody says otherwise."""

import os

from memtools.ledger import Meter, choose_meter, native_reason


def meter_of_a_run(name: str | None = None) -> Meter:
    """Return the meter of that name, else the one that `MEMTOOLS_METER` names, else the best there is.

    A figure per task is what one runs a program for: where the native meter cannot be had, that is the traced one, and
    not the resident one as for a scope.

    Raises:
        ConfigError: for a name that no meter has, and for `native` where it cannot be had.
    """
    if name or os.environ.get("MEMTOOLS_METER"):
        return choose_meter(name)
    return choose_meter("traced" if native_reason() else "native")
