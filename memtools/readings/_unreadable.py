"""The error for a figure that nobody can give.

A wrong number would be worse: budgets and thresholds act on it.
"""

from memtools.errors import MemtoolsError


class ReadingError(MemtoolsError, OSError):
    """The operating system did not give a figure of this process, and there is no second way to it.

    `errno`, `strerror` and `filename` say why, as in every `OSError`: most often the process has no file descriptor
    left (EMFILE), or /proc is not mounted.
    """
