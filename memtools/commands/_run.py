"""Run a program unchanged, and report at its very end who used how much.

Covers: the owner of the whole program, the order of things at its end. Leaves to others: starting it as the interpreter
would (`_program`), its end (`_ends`), following its tasks (`memtools.ledger._instrument`), the report itself
(`memtools.reports`).

The report is an `atexit` call that was registered before the program's own, hence runs after all of them, when the
threads that are no daemons have been joined. A program that dies by SIGTERM, `os._exit` or `exec` dies as it would
alone: there is no report then. Children of a fork print none: they are not the process that was asked about.
"""

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, TextIO

from memtools._gc import set_aside
from memtools._records import record
from memtools._text import printable
from memtools.commands._program import run_program, require_readable
from memtools.leaks import BackgroundInvestigation, Diagnosis
from memtools.ledger import Meter, choose_meter, end_owner, native_reason, open_owner
from memtools.ledger._instrument import GlobalTaskTracking, track_all_loops
from memtools.readings import ProcessMemory, read_process
from memtools.reports import Report, html_page, report
from memtools.reports._text import can_show_blocks

# End as the program would have ended by itself.
#
# Covers: uncaught exceptions (the traceback, without our frames, through the program's own `sys.excepthook`), and the
# death by SIGINT. Leaves to others: exits, which the interpreter handles as ever.

_OUR_FOLDER: Final = str(Path(__file__).parent)
_INTERRUPTED: Final = 128 + signal.SIGINT  # what a shell makes of it; for interpreters without the flag below


def exit_with(error: BaseException) -> NoReturn:
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


# Which meter counts in `python -m memtools run`: one that can tell tasks apart, unless somebody says otherwise.


def default_meter(name: str | None = None) -> Meter:
    """Return the meter of that name, else the one that `MEMTOOLS_METER` names, else the best there is.

    A figure per task is what one runs a program for: where the native meter cannot be had, that is the traced one, and
    not the resident one as for a scope.

    Raises:
        ConfigError: for a name that no meter has, and for `native` where it cannot be had.
    """
    if name or os.environ.get("MEMTOOLS_METER"):
        return choose_meter(name)
    return choose_meter("tracemalloc" if native_reason() else "native")


# Put the report where it was asked for, after everything that the program has written.
#
# Covers: stderr that is a terminal, a file, a pipe that nobody reads, closed, or replaced; files. Leaves to others: what
# the report says (`memtools.reports`).


def write_report(
    report: Report,
    stream: TextIO | None,
    *,
    json_path: str | None,
    html_path: str | None,
    diagnosis: Diagnosis | None = None,
) -> None:
    """Write the report, and the answer about leaks where it was asked for, to `stream` and to the files.

    Raises:
        OSError: when a file cannot be written; the stream has been served then.
    """
    _flush(sys.stdout)
    if stream is not None:
        _write(stream, _as_text(report, stream, diagnosis))
    if json_path is not None:
        _write_file(json_path, _as_json(report, diagnosis))
    if html_path is not None:
        _write_file(html_path, html_page(report))


def _as_json(report: Report, diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return report.to_json() + "\n"
    return json.dumps({**report.to_dict(), "leaks": diagnosis.to_dict()}, indent=2) + "\n"


def _as_text(report: Report, stream: TextIO, diagnosis: Diagnosis | None) -> bytes:
    encoding = getattr(stream, "encoding", None) or "ascii"
    text = report.to_text(width=_width_of(stream), ascii_only=not can_show_blocks(encoding))
    if diagnosis is not None:
        # In full, however wide the terminal is: the end of the line is what to do about it.
        text += "\n\n" + "\n".join(printable(line) for line in diagnosis.lines())
    return f"\n{text}\n".encode(encoding, "backslashreplace")


def _width_of(stream: TextIO) -> int | None:
    if os.environ.get("COLUMNS"):
        return None  # what the report goes by
    try:
        return min(os.get_terminal_size(stream.fileno()).columns, 140)
    except (OSError, ValueError, AttributeError):
        return None


def _write(stream: TextIO, text: bytes) -> None:
    # Past the stream's buffer: what could not be written would stay there, and change the exit code at the final flush.
    try:
        stream.flush()
        number = stream.fileno()
        if not os.get_blocking(number):
            os.set_blocking(number, True)  # the program is over, and half a report helps nobody
        while text:
            text = text[os.write(number, text) :]
    except (OSError, ValueError, AttributeError):  # a pipe that nobody reads; a stream that was closed
        return


def _flush(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError, AttributeError):
        return  # the interpreter flushes again, and says so in the program's name


def _write_file(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


_METER_VARIABLE: Final = "MEMTOOLS_METER"


@record
class RunOptions:
    """What is to be run, and where the report goes besides stderr.

    Attributes:
        program: path of a script, folder or zip file, or the name of a module.
        is_module: whether it is a module.
        arguments: what belongs to the program.
        meter: who counts.
        json_path: where to write the report as JSON.
        html_path: where to write it as a page.
        leaks: whether to look for leaks meanwhile.
    """

    program: str
    is_module: bool
    arguments: tuple[str, ...]
    meter: Meter
    json_path: str | None = None
    html_path: str | None = None
    leaks: bool = False

    @property
    def title(self) -> str:
        """What the program is called in the report."""
        return self.program if self.is_module else os.path.basename(self.program.rstrip("/\\")) or self.program


class _RunSession:
    """The owner of the whole program, from its start to its report."""

    def __init__(self, wish: RunOptions, stream: TextIO | None) -> None:
        self._wish = wish
        self._stream = stream
        self._process = os.getpid()
        self.failed = False
        # Scopes and decorators of the program that name no meter shall use ours; its children inherit it. Only where it
        # is not theirs anyway: a child may be another Python, for which there is no native meter.
        if choose_meter() is not wish.meter:
            os.environ[_METER_VARIABLE] = wish.meter.name
        wish.meter.hold()
        self._everywhere: GlobalTaskTracking = track_all_loops(wish.meter)
        self._since: ProcessMemory = read_process()
        self._owner = open_owner(wish.title, "scope", meter=wish.meter)
        self._alongside = BackgroundInvestigation() if wish.leaks else None
        if self._alongside is not None:
            self._alongside.start()

    def note_end(self) -> None:
        """Remember that the main module has ended, where no thread goes on: what it held is given back now."""
        others = (one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon)
        if self._alongside is not None and next(others, None) is None:
            self._alongside.note_end()

    def finish(self) -> None:
        """Report; whatever goes wrong here, the program's end stays what it was."""
        if os.getpid() != self._process:
            return
        try:
            diagnosis = self._diagnose()
            write_report(
                self._take(), self._stream,
                json_path=self._wish.json_path, html_path=self._wish.html_path, diagnosis=diagnosis,
            )  # fmt: skip
        except Exception as error:
            _report_error(self._stream, error)

    def _diagnose(self) -> Diagnosis | None:
        if self._alongside is None:
            return None
        try:
            return self._alongside.finish()
        except Exception as error:
            _report_error(self._stream, error, "answer about leaks")
            return None

    def _take(self) -> Report:
        end_owner(self._owner, failed=self.failed)
        taken = report(title=self._wish.title, since=self._since)
        self._everywhere.close()
        self._wish.meter.release()
        return taken


def run(wish: RunOptions) -> int:
    """Run the program; return 0 when its main module comes to its end.

    Raises:
        SystemExit: as the program exits; 1 after an uncaught exception, whose traceback has been shown.
    """
    if not wish.is_module:
        require_readable(wish.program)
    watch = _RunSession(wish, sys.stderr)
    atexit.register(watch.finish)
    if not wish.leaks:  # who looks for leaks needs to see everything, all the time
        set_aside()
    error = _run_to_end(watch, wish)
    # Here, where no exception is being handled: what a hook of the program raises has no context then, as alone.
    if error is not None:
        exit_with(error)
    return 0


def _run_to_end(watch: _RunSession, wish: RunOptions) -> BaseException | None:
    try:
        run_program(wish.program, wish.arguments, is_module=wish.is_module)
    except SystemExit as end:
        watch.failed = end.code not in (None, 0)
        raise
    except BaseException as error:
        watch.failed = True
        return error
    finally:
        watch.note_end()
    return None


def _report_error(stream: TextIO | None, error: Exception, what: str = "report") -> None:
    try:
        if stream is not None:
            stream.write(f"memtools: no {what}: {type(error).__name__}: {error}\n")
    except Exception:  # nobody is there to be told
        return
