"""Which ends are failures: being closed or cancelled is none.

By name: neither asyncio nor trio has to be loaded for it.
"""

from typing import Final

_NO_FAILURES: Final = frozenset({"StopIteration", "GeneratorExit", "CancelledError", "Cancelled"})


def is_failure(error: BaseException | None) -> bool:
    """Return whether what ended with `error`, or with None for a result, has failed."""
    return error is not None and type(error).__name__ not in _NO_FAILURES
