"""Run a program unchanged, and report at its very end who used how much.

Covers: the owner of the whole program, the order of things at its end. Leaves to others: starting it as the interpreter
would (`_program`), its end (`_ends`), following its tasks (`memtools.ledger._everywhere`), the report itself
(`memtools.reports`).

The report is an `atexit` call that was registered before the program's own, hence runs after all of them, when the
threads that are no daemons have been joined. A program that dies by SIGTERM, `os._exit` or `exec` dies as it would
alone: there is no report then. Children of a fork print none: they are not the process that was asked about.
"""

import atexit
import os
import sys
import threading
from typing import Final, TextIO

from memtools.commands._ends import end_with
from memtools.commands._program import execute, refuse_unreadable
from memtools.commands._telling import tell
from memtools.freezing import set_aside
from memtools.leaks import Alongside, Diagnosis
from memtools.ledger import Meter, choose_meter, end_owner, open_owner
from memtools.ledger._everywhere import Everywhere, follow_everywhere
from memtools.readings import ProcessMemory, read_process
from memtools.records import record
from memtools.reports import Report, report

_METER_VARIABLE: Final = "MEMTOOLS_METER"


@record
class Run:
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


class _Watch:
    """The owner of the whole program, from its start to its report."""

    def __init__(self, wish: Run, stream: TextIO | None) -> None:
        self._wish = wish
        self._stream = stream
        self._process = os.getpid()
        self.failed = False
        # Scopes and decorators of the program that name no meter shall use ours; its children inherit it. Only where it
        # is not theirs anyway: a child may be another Python, for which there is no native meter.
        if choose_meter() is not wish.meter:
            os.environ[_METER_VARIABLE] = wish.meter.name
        wish.meter.hold()
        self._everywhere: Everywhere = follow_everywhere(wish.meter)
        self._since: ProcessMemory = read_process()
        self._owner = open_owner(wish.title, "scope", meter=wish.meter)
        self._alongside = Alongside() if wish.leaks else None
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
            tell(
                self._take(), self._stream,
                json_path=self._wish.json_path, html_path=self._wish.html_path, diagnosis=diagnosis,
            )  # fmt: skip
        except Exception as error:
            _complain(self._stream, error)

    def _diagnose(self) -> Diagnosis | None:
        if self._alongside is None:
            return None
        try:
            return self._alongside.finish()
        except Exception as error:
            _complain(self._stream, error, "answer about leaks")
            return None

    def _take(self) -> Report:
        end_owner(self._owner, failed=self.failed)
        taken = report(title=self._wish.title, since=self._since)
        self._everywhere.close()
        self._wish.meter.release()
        return taken


def run(wish: Run) -> int:
    """Run the program; return 0 when its main module comes to its end.

    Raises:
        SystemExit: as the program exits; 1 after an uncaught exception, whose traceback has been shown.
    """
    if not wish.is_module:
        refuse_unreadable(wish.program)
    watch = _Watch(wish, sys.stderr)
    atexit.register(watch.finish)
    if not wish.leaks:  # who looks for leaks needs to see everything, all the time
        set_aside()
    error = _executed(watch, wish)
    # Here, where no exception is being handled: what a hook of the program raises has no context then, as alone.
    if error is not None:
        end_with(error)
    return 0


def _executed(watch: _Watch, wish: Run) -> BaseException | None:
    try:
        execute(wish.program, wish.arguments, is_module=wish.is_module)
    except SystemExit as end:
        watch.failed = end.code not in (None, 0)
        raise
    except BaseException as error:
        watch.failed = True
        return error
    finally:
        watch.note_end()
    return None


def _complain(stream: TextIO | None, error: Exception, what: str = "report") -> None:
    try:
        if stream is not None:
            stream.write(f"memtools: no {what}: {type(error).__name__}: {error}\n")
    except Exception:  # nobody is there to be told
        return
