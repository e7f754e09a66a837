"""Which type makes the calls that add to a bounded list: the one in C, or the one in Python.

Leaves to others: what the two do (`_fast_window.c`, `_pure_window`).
"""

import os
from typing import Any

from memtools.structures._pure_window import PureWindow


def pick_seat() -> type[list[Any]]:
    """Return the C type where it was built and `MEMTOOLS_NATIVE=0` does not forbid it, or else the Python one."""
    if os.environ.get("MEMTOOLS_NATIVE") == "0":
        return PureWindow

    try:
        # Not at the top: it is missing where there was no compiler, and refuses where there is no GIL.
        from memtools.structures import _fast_window
    except ImportError:
        return PureWindow
    return _fast_window.FastWindow
