"""Which meter counts in tests: one that sees single bytes, wherever one can be had."""

import os

from memtools.ledger import Meter, choose_meter, native_reason


def exact_meter(name: str | None = None) -> Meter:
    """Return the meter called `name`, else the one that `MEMTOOLS_METER` names, else native, else traced.

    Raises:
        ConfigError: for a name that no meter has, and for `native` where it cannot be had.
    """
    if name is None and not os.environ.get("MEMTOOLS_METER"):
        name = "traced" if native_reason() else "native"
    return choose_meter(name)
