"""End as the program would have ended by itself.

Covers: uncaught exceptions (the traceback, without our frames, through the program's own `sys.excepthook`), and the
death by SIGINT. Leaves to others: exits, which the interpreter handles as ever.
"""

import contextlib
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

_OUR_FOLDER: Final = str(Path(__file__).parent)
_INTERRUPTED: Final = 128 + signal.SIGINT  # what a shell makes of it; for interpreters without the flag below


def end_with(error: BaseException) -> NoReturn:
    """Show an uncaught exception as the interpreter does, and exit as it does.

    Raises:
        SystemExit: always.
    """
    trace = _theirs(error.__traceback__)
    error.__traceback__ = trace
    _remember(error)
    _show(error, trace)
    if isinstance(error, KeyboardInterrupt):
        _mark_as_interrupted()
        sys.exit(_INTERRUPTED)
    sys.exit(1)


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    # Ours stand first, and there is no need to look further.
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OUR_FOLDER):
        trace = trace.tb_next
    return trace


def _remember(error: BaseException) -> None:
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error


def _show(error: BaseException, trace: TracebackType | None) -> None:
    try:
        sys.excepthook(type(error), error, trace)
    except SystemExit:
        raise
    except BaseException as broken:
        # What the interpreter says when the program's hook fails.
        broken.__traceback__ = _theirs(broken.__traceback__)
        sys.stderr.write("Error in sys.excepthook:\n")
        sys.__excepthook__(type(broken), broken, broken.__traceback__)
        sys.stderr.write("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, trace)


def _mark_as_interrupted() -> None:
    # The interpreter kills itself by SIGINT, after all clean-up, when a KeyboardInterrupt has left the code that it ran
    # last (from text, not from a code object). So it knows what it was; doing it ourselves would skip the clean-up.
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")
