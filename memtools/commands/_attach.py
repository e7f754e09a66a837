"""`memtools attach`: ask a process that runs for its report, leaks, heap or owners, and print the answer."""

import json
import os
import sys
from typing import Any, Final

from memtools._records import record
from memtools._text import printable
from memtools.black_box._folder import box_of_process
from memtools.black_box._mailbox import NoAnswer, ask
from memtools.leaks._investigate import MIN_DURATION_S
from memtools.readings._other_processes import is_python, process_user, user_name
from memtools.readings._shares import process_start

DEFAULT_SECONDS: Final = 10.0
DEFAULT_SECONDS_OF_LEAKS: Final = 20.0
DEFAULT_TIMEOUT_S: Final = 60.0

_HAS_PROC: Final = os.path.isdir("/proc/self/fd")  # without it only a box can be found

ANSWERED: Final = 0  # exit codes
NOT_ANSWERED: Final = 1  # it could be asked, and has not answered, or refuses
CANNOT_BE_ASKED: Final = 2

_WITHOUT_BOX: Final = (
    "it has no black box: start it with MEMTOOLS_BLACK_BOX=/dev/shm or MemoryMonitor(black_box=True), or by `memtools "
    "run --black-box DIR`; in its code, memtools.leaks.Investigator answers to a signal"
)


@record
class AttachOptions:
    """What is asked of which process.

    Attributes:
        pid: the process.
        word: `"report"`, `"leaks"`, `"heap"` or `"owners"`.
        seconds: for how long it is to be observed; None for the default of the question.
        timeout_s: how many seconds longer than that to wait at most.
        as_json: whether to print JSON.
    """

    pid: int
    word: str
    seconds: float | None
    timeout_s: float
    as_json: bool

    def observed_s(self, *, has_box: bool) -> float:
        """Return for how long it is observed, in seconds: the report of a monitor takes none, and leaks need six."""
        if self.word == "report" and has_box:
            return 0.0
        if self.word == "leaks":
            return max(DEFAULT_SECONDS_OF_LEAKS if self.seconds is None else self.seconds, MIN_DURATION_S)
        return DEFAULT_SECONDS if self.seconds is None else self.seconds


class CannotBeAsked(Exception):
    """A process that cannot be asked; the text says why, and what can be done."""


def attach(options: AttachOptions) -> int:
    """Ask a process, and print its answer; return the exit code."""
    try:
        answer = _ask(options)
    except (NoAnswer, CannotBeAsked, OSError) as error:
        # A path or a user may have any name.
        sys.stderr.write(f"memtools attach: process {options.pid}: {printable(str(error))}\n")
        return CANNOT_BE_ASKED if isinstance(error, CannotBeAsked | PermissionError) else NOT_ANSWERED
    except KeyboardInterrupt:
        sys.stderr.write("memtools attach: interrupted; the process goes on\n")
        return NOT_ANSWERED
    if options.as_json:
        sys.stdout.write(json.dumps({"pid": options.pid, **answer}, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{printable(line)}\n" for line in _lines_of(answer))
    return ANSWERED


def _ask(options: AttachOptions) -> dict[str, Any]:  # Any: what another process says
    pid = options.pid
    if pid == os.getpid():
        raise CannotBeAsked("that is this process itself")
    started = process_start(pid)
    if not started:
        raise CannotBeAsked("there is no such process")
    try:
        box = box_of_process(pid)
        if box is not None:
            return ask(
                box,
                options.word,
                options.observed_s(has_box=True),
                timeout_s=options.timeout_s,
                is_alive=lambda: process_start(pid) == started,
            )
        if _HAS_PROC and not is_python(pid):
            raise CannotBeAsked("it runs no Python, as far as its mapped files tell")
    except PermissionError as error:
        raise CannotBeAsked(_why_not_permitted(pid)) from error
    if not _HAS_PROC or not hasattr(sys, "remote_exec"):
        raise CannotBeAsked(_WITHOUT_BOX)
    from memtools.commands._injection import CannotInject, inject  # what only Python 3.14 and later can do

    try:
        return inject(
            pid,
            options.word,
            options.observed_s(has_box=False),
            timeout_s=options.timeout_s,
            is_alive=lambda: process_start(pid) == started,
        )
    except CannotInject as error:
        raise CannotBeAsked(f"{error}. Or: {_WITHOUT_BOX}") from error


def _why_not_permitted(pid: int) -> str:
    user = process_user(pid)
    if user is None:
        return "it has ended meanwhile"
    if os.geteuid() in (0, user):
        return "the system lets this process not look at it: it has changed its user, or is in another user namespace"
    return f"it belongs to {user_name(user)}, and only that user and root may ask: run this as one of them"


def _lines_of(answer: dict[str, Any]) -> list[str]:
    lines: object = answer.get("lines")
    return [str(line) for line in lines] if isinstance(lines, list) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # from JSON
