"""logging filter that adds the memory in use to each record.

A file of its own because each adapter has the name of its library.
"""

import logging
from typing import Final

from memtools.errors import ReadingError
from memtools.ledger import active_owner
from memtools.readings import resident_bytes

_NO_SCOPE: Final = "-"


def log_fields() -> tuple[int | None, str]:
    """Return the resident bytes, None where they cannot be read, and the name of the innermost open owner, or `-`.

    The name was truncated to 200 characters and escaped when the owner was opened: it contains no line break. Cost:
    2 us.
    """
    try:
        resident: int | None = resident_bytes()
    except ReadingError:
        resident = None  # a lost line says less than one without a figure
    owner = active_owner()
    return resident, _NO_SCOPE if owner is None else owner.name


class MemoryFilter(logging.Filter):
    """Adds `rss` and `memory_scope` to log records; lets all of them through.

    ```python
    import logging
    import sys

    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(MemoryFilter())
    handler.setFormatter(logging.Formatter("%(message)s rss=%(rss)s scope=%(memory_scope)s"))
    ```

    `rss` is the resident memory of the process in bytes, None where it cannot be read. `memory_scope` is the name of
    the innermost scope, call or task in which the line was logged, `-` outside of all. Both are read when the filter
    runs: add it to a handler, but not to one behind a queue. Cost: 2 us a record.

    Args:
        name: as in `logging.Filter`: only loggers of this name and below get the fields and pass.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; return whether the record passes."""
        if not super().filter(record):
            return False
        record.rss, record.memory_scope = log_fields()
        return True
