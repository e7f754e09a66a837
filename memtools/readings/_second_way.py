"""The second way to the memory of this process: psutil, loaded when it is first needed.

Leaves to others: what psutil is asked (`_psutil`), the first way (`_statm`).
"""

from typing import TypeAlias

from memtools.readings._unreadable import ReadingError

# Virtual, resident, shared and peak memory of one moment, in bytes; None where the source does not say.
Fields: TypeAlias = tuple[int, int, int | None, int | None]


def by_psutil(first: Exception | None = None) -> Fields:
    """Return the memory of this process as psutil reads it, `first` being what went wrong with the first way.

    Raises:
        ReadingError: when psutil cannot read it either.
    """
    try:
        from memtools.readings._psutil import memory_fields

        return memory_fields()
    except (OSError, ImportError) as error:
        # Without a descriptor even the import fails; the first refusal is the one to tell of.
        raise _refusal(first or error) from error


def _refusal(error: Exception) -> ReadingError:
    number = (error.errno if isinstance(error, OSError) else None) or 0
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    path = error.filename if isinstance(error, OSError) else None
    return ReadingError(number, f"the memory of this process cannot be read: {reason}", path)
