"""Run a program unchanged, and report its memory at its very end.

The report is an `atexit` call that was registered before the program's own, so it runs after all of them, when the
threads that are no daemons have been joined. Where the program kills itself by a signal, as servers do when they have
handled SIGTERM, or calls `os._exit`, the report comes before that. A program that a signal from outside or `exec` ends,
ends as it would alone, without a report. Only the process that was started prints: what its child processes leave when
they end comes behind its own report.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

from memtools._gc import freeze_existing
from memtools._records import record
from memtools._safe_calls import strip_own_frames
from memtools._text import printable
from memtools.commands._background_samples import BackgroundSamples, ProgramTimeline
from memtools.commands._children import METER_VARIABLE, Family, FamilyOptions, finish_child, follow_children
from memtools.commands._family_report import NO_CHILDREN, FamilyReport, collect
from memtools.commands._installation import hidden_installation
from memtools.commands._measurement import Measurement
from memtools.commands._modules import hidden_modules, own_modules
from memtools.commands._program import (
    Program,
    before_death,
    before_exit,
    call_at_bottom,
    can_follow,
    forget_file,
    register_last,
    resumed_at_exit,
)
from memtools.leaks import Diagnosis
from memtools.ledger import Meter, choose_meter, native_reason
from memtools.reports import Report, html_page
from memtools.reports._text import can_show_blocks

if TYPE_CHECKING:
    from memtools.commands._recording import Recording

STANDARD_OUTPUT: Final = "-"
_FOLDER: Final = str(Path(__file__).parent)


def default_meter(name: str | None = None) -> Meter:
    """Return the meter of that name, else the one that `MEMTOOLS_METER` names, else the best available.

    A figure per task is the purpose of a run: where the native meter is not available, that is tracemalloc, and not rss
    as for a scope.

    Raises:
        ConfigError: for a name that no meter has, and for `native` where it is not available.
    """
    if name or os.environ.get(METER_VARIABLE):
        return choose_meter(name)
    return choose_meter("tracemalloc" if native_reason() else "native")


@record
class RunOptions:
    """What to run, and where the report goes besides stderr.

    Attributes:
        program: what is run.
        meter: what counts.
        json_path: where to write the report as JSON; `-` is standard output.
        html_path: where to write it as a page; `-` is standard output.
        leaks: whether to search for leaks meanwhile.
        children: whether to follow the processes that the program starts.
        black_box: the folder of a file that says who held what, for after a kill; None for none.
    """

    program: Program
    meter: Meter
    json_path: str | None = None
    html_path: str | None = None
    leaks: bool = False
    children: bool = True
    black_box: str | None = None


def run(options: RunOptions) -> int:
    """Run the program; return 0 when its main module comes to its end.

    Raises:
        SystemExit: as the program exits; 1 after an uncaught exception, whose traceback has been shown.
        KeyboardInterrupt: when it has left the program and has been shown, so that the interpreter dies by SIGINT.
    """
    identity = _prepare_files(options)
    execute = options.program.load()
    session = _RunSession(options, sys.stderr, identity)
    register_last(session.finish)
    before_death(session.finish_before_death)
    before_exit(session.finish_before_death)
    if not options.leaks:  # a search for leaks has to see every object
        freeze_existing()
    with resumed_at_exit():
        error = _run_to_end(session, execute)
        # Here, where no exception is being handled: what a hook of the program raises has no context then, as alone.
        if error is not None:
            exit_with(error)
    return 0


def _prepare_files(options: RunOptions) -> tuple[tuple[str, str], ...]:
    """Return what program it is, where a file will say so.

    What only files need is loaded here, before the program can have other modules of these names.
    """
    if options.json_path is None and options.html_path is None:
        return ()
    if options.html_path is not None:
        for name in ("memtools.heap._type_sizes", "memtools.monitor._report", "memtools.reports._page"):
            import_module(name)
    found: tuple[tuple[str, str], ...] = import_module("memtools._identity").identity()
    return found


def _run_to_end(session: "_RunSession", execute: Callable[[], None]) -> BaseException | None:
    try:
        execute()
    except SystemExit as end:
        session.measurement.failed = end.code not in (None, 0)
        raise
    except BaseException as error:
        session.measurement.failed = True
        return error
    finally:
        session.note_end()
    return None


class _RunSession:
    """The measurement of the program from its start to its report."""

    def __init__(self, options: RunOptions, stream: TextIO | None, identity: tuple[tuple[str, str], ...] = ()) -> None:
        self._options = options
        self._identity = identity
        self._stream = stream
        self._stdout: TextIO | None = sys.stdout
        self._process = os.getpid()
        self._finished = False
        self._is_dying = False
        # Scopes and decorators of the program that name no meter shall use this one; child processes inherit it. Only
        # where it is not the default anyway: a child may be another Python, which has no native meter.
        if choose_meter() is not options.meter:
            os.environ[METER_VARIABLE] = options.meter.name
        self._usage_of_children = _usage_of_children()
        self._family = self._begin_family() if options.children and can_follow() else None
        self.measurement = Measurement(options.program.title, options.meter, leaks=options.leaks)
        self._samples = BackgroundSamples() if options.html_path is not None else None
        if self._samples is not None:
            self._samples.start()
        if self._family is not None:
            follow_children(self._family)
        self._recording = self._begin_recording()

    def note_end(self) -> None:
        """Note the end of the main module, where no thread goes on: what it held is given back from now on."""
        main = threading.main_thread()
        if not any(thread is not main and not thread.daemon for thread in threading.enumerate()):
            self.measurement.mark_program_end()

    def finish(self) -> None:
        """Report once; a failure in here does not change how the program ends."""
        if os.getpid() != self._process:
            finish_child()
            return
        if self._finished:
            return
        self._finished = True
        with own_modules():
            self._report()
            if self._recording is not None:
                self._recording.close()
        # Python 3.15 flushes what the program's finalisers write at the very end only as it drops the stream.
        self._stdout = self._stream = None

    def finish_before_death(self) -> None:
        """Report before the process ends at once: what the program has written and not flushed is lost, as alone."""
        self._is_dying = True
        self.finish()

    def _begin_recording(self) -> "Recording | None":
        if self._options.black_box is None:
            return None
        from memtools.commands._recording import begin_recording  # most runs have none

        return begin_recording(self._options.black_box, self._options.program.title)

    def _begin_family(self) -> Family | None:
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        options = FamilyOptions(
            title=self._options.program.title,
            meter=self._options.meter.name,
            leaks=self._options.leaks,
            width=None if self._stream is None else _width_of(self._stream),
            ascii_only=not can_show_blocks(encoding),
            hidden=hidden_modules(),
            black_box=self._options.black_box,
        )
        try:
            return Family.found(options)
        except OSError as error:
            _report_error(self._stream, "reports of child processes", error)
            return None

    def _report(self) -> None:
        try:
            timeline = None if self._samples is None else self._samples.stop()
            family = NO_CHILDREN if self._family is None else collect(self._family)
            diagnosis = self._diagnose(family)
            write_report(
                self.measurement.report(caveats=self._caveats(family), is_end=True, identity=self._identity),
                self._stream,
                stdout=self._stdout,
                json_path=self._options.json_path,
                html_path=self._options.html_path,
                diagnosis=diagnosis,
                family=family,
                timeline=timeline,
                flush=not self._is_dying,
            )
        except Exception as error:
            _report_error(self._stream, "report", error)
        finally:
            if self._family is not None:
                self._family.remove()

    def _diagnose(self, family: FamilyReport) -> Diagnosis | None:
        try:
            return self.measurement.find_leaks(apart_from=family.searched())
        except Exception as error:
            _report_error(self._stream, "search for leaks", error)
            return None

    def _caveats(self, family: FamilyReport) -> tuple[str, ...]:
        caveats = list(family.caveats())
        if not family and (_usage_of_children() != self._usage_of_children or _has_children()):
            caveats.append("child processes were started, and their memory is not in these figures")
        if native_reason() and (folder := hidden_installation()) is not None:
            caveats.append(
                f"the source of memtools in the current folder hides the one installed in {folder}, and only that one "
                "has C extensions: type memtools run, or python -P -m memtools run"
            )
        return tuple(caveats)


def _usage_of_children() -> object:
    """Return a value that changes when a child process has ended and has been waited for."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN)


def _has_children() -> bool:
    """Return whether there are child processes that have not been waited for; they are left alone."""
    if sys.platform == "win32":
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is none
        return False
    return True


def write_report(
    report: Report,
    stream: TextIO | None,
    *,
    stdout: TextIO | None = None,
    flush: bool = True,
    json_path: str | None,
    html_path: str | None,
    diagnosis: Diagnosis | None = None,
    family: FamilyReport = NO_CHILDREN,
    timeline: ProgramTimeline | None = None,
) -> None:
    """Write the report, the diagnosis of leaks where there is one, and those of child processes to `stream` and files.

    `stream` may be a terminal, a file, a closed pipe, or replaced by the program. `stdout` is where the path `-` leads
    to; `flush` says whether to write out what the program has left in the buffers.

    Raises:
        OSError: when a file cannot be written; `stream` has got the report then.
    """
    if flush:
        _flush(sys.stdout)
        _flush(stdout)
        _flush(stream)
    if stream is not None:
        _write(stream, _as_text(report, stream, diagnosis, family))
    if json_path is not None:
        _write_file(json_path, _as_json(report, diagnosis, family), stdout)
    if html_path is not None:
        page = html_page(report, timeline=timeline, diagnosis=diagnosis, heap=True, more=family.html())
        _write_file(html_path, page, stdout)


def _as_json(report: Report, diagnosis: Diagnosis | None, family: FamilyReport) -> str:
    fields = report.to_dict()
    if diagnosis is not None:
        fields["leaks"] = diagnosis.to_dict()
    if family:
        fields["children"] = family.to_dicts()
    return json.dumps(fields, indent=2) + "\n"


def _as_text(report: Report, stream: TextIO, diagnosis: Diagnosis | None, family: FamilyReport) -> bytes:
    encoding = getattr(stream, "encoding", None) or "ascii"
    width, ascii_only = _width_of(stream), not can_show_blocks(encoding)
    text = report.to_text(width=width, ascii_only=ascii_only)
    if diagnosis is not None:
        # Not truncated to the width of the terminal: the end of a line is what to do about the leak.
        text += "\n\n" + "\n".join(printable(line) for line in [*diagnosis.lines(), *report.caveats])
    if family:
        text += "\n\n" + family.to_text(width=width, ascii_only=ascii_only)
    return f"\n{text}\n".encode(encoding, "backslashreplace")


def _width_of(stream: TextIO) -> int | None:
    if os.environ.get("COLUMNS"):
        return None  # the report uses it
    try:
        return min(os.get_terminal_size(stream.fileno()).columns, 140)
    except (OSError, ValueError, AttributeError):
        return None


def _write(stream: TextIO, text: bytes) -> None:
    # Not through the stream's buffer: text that cannot be written would stay in it, and change the exit code at the
    # final flush.
    try:
        number = stream.fileno()
        if not os.get_blocking(number):
            os.set_blocking(number, True)  # the program has ended, and the report has to be whole
        while text:
            text = text[os.write(number, text) :]
    except (OSError, ValueError, AttributeError):  # a closed pipe; a closed stream; an object that is no file
        return


def _flush(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError, AttributeError):
        return  # the interpreter flushes again, and reports the error as the program's


def _write_file(path: str, text: str, stdout: TextIO | None) -> None:
    if path == STANDARD_OUTPUT:
        if stdout is not None:
            _write(stdout, text.encode("utf-8"))
        return
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def _report_error(stream: TextIO | None, what: str, error: Exception) -> None:
    try:
        if stream is not None:
            stream.write(f"memtools: no {what}: {type(error).__name__}: {error}\n")
    except Exception:  # there is no other stream to report it to
        return


def exit_with(error: BaseException) -> NoReturn:
    """Show an uncaught exception as the interpreter does, without the frames of memtools, and exit as it does.

    Raises:
        SystemExit: with code 1.
        KeyboardInterrupt: `error`, where it is one; it is not shown again.
    """
    trace = error.__traceback__ = strip_own_frames(error.__traceback__, _is_own)
    _set_last_error(error)
    _show(error, trace)
    forget_file()
    if isinstance(error, KeyboardInterrupt):
        _raise_silently(error)
    sys.exit(1)


def _is_own(code: CodeType) -> bool:
    return code.co_filename.startswith(_FOLDER)


def _set_last_error(error: BaseException) -> None:
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error


def _show(error: BaseException, trace: TracebackType | None) -> None:
    try:
        call_at_bottom(sys.excepthook, type(error), error, trace)
    except SystemExit:
        raise
    except BaseException as hook_error:
        # The messages of the interpreter when the program's hook fails.
        hook_trace = hook_error.__traceback__ = strip_own_frames(hook_error.__traceback__, _is_own)
        sys.stderr.write("Error in sys.excepthook:\n")
        sys.__excepthook__(type(hook_error), hook_error, hook_trace)
        sys.stderr.write("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, trace)


def _raise_silently(error: KeyboardInterrupt) -> NoReturn:
    # The interpreter kills itself by SIGINT, after all clean-up, when a KeyboardInterrupt has left its main program and
    # has been shown. Killing the process here would skip the clean-up.
    trace, hook = error.__traceback__, sys.excepthook

    def restore_hook(*_: object) -> None:
        sys.excepthook = hook
        error.__traceback__ = trace
        _set_last_error(error)

    sys.excepthook = restore_hook
    raise error
