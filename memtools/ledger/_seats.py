"""Whether the parts that each step goes through are those in C, or those in Python.

Covers: the one choice, made at import: both promise the same, and are never mixed. Leaves to others: the parts
(`native/seats.c`, `native/turns.c` and `native/driver.c`; `_owner_fields`, `_current` and `_steps` in Python).
"""

import os
from types import ModuleType


def native_seats() -> ModuleType | None:
    """Return the module in C where it was built for this Python and `MEMTOOLS_NATIVE=0` does not forbid it."""
    if os.environ.get("MEMTOOLS_NATIVE") == "0":
        return None
    try:
        # Not at the top: it is missing where there was no compiler.
        from memtools.ledger import _native
    except ImportError:
        return None
    return None if _native.reason() else _native
