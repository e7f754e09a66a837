"""How much of C's own memory is in use: what extension modules and C libraries hold.

`mallinfo2` of the GNU C library (2.33 or later, man 3 mallinfo). Elsewhere nobody can tell, and None is said. Blocks of
Python's own up to 512 bytes are not in it: Python takes those from arenas of its own.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final

_FIELDS: Final = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
)  # fmt: skip


def malloc_bytes() -> int | None:
    """Return the bytes that callers of C's `malloc` have in use, mapped blocks included; None where unknown.

    It walks the free lists of all arenas: microseconds in a tidy process, more in a fragmented one.
    """
    mallinfo = _find()
    if mallinfo is None:
        return None
    found = mallinfo()
    return int(found.uordblks) + int(found.hblkhd)


@cache
def _find() -> Callable[[], Any] | None:  # Any: a structure with the fields above
    if sys.platform != "linux":
        return None
    import ctypes  # loaded by those who ask

    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return None
    fields = [(name, ctypes.c_size_t) for name in _FIELDS]
    function.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": fields})
    function.argtypes = ()
    found: Callable[[], Any] = function
    return found
