"""Follow the child processes of a run: each leaves its report in a folder, from which the first process prints it.

A process that is forked goes on measuring, from the fork on. A Python that the program starts, by `subprocess` or by
the spawn method of `multiprocessing`, is told by two variables of its environment to measure itself
(child_path/sitecustomize.py); neither is seen by its program. The report is written when the process ends: at its exit,
at `os._exit`, or as it kills itself. Daemonic processes of `multiprocessing`, those of a pool among them, are killed by
their parent, so these also write while they run.
"""

import _thread
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import memtools
from memtools._forks import register_after_fork
from memtools._gc import freeze_existing
from memtools._records import as_dict, record
from memtools._text import printable
from memtools._threads import disregard_thread
from memtools.commands._measurement import Measurement
from memtools.commands._modules import hide_shadowed_modules, own_modules
from memtools.commands._program import around_starts, before_death, before_exit, environment_lines, register_last
from memtools.leaks import Diagnosis
from memtools.ledger import choose_meter
from memtools.readings import read_process
from memtools.readings._shares import memory_share, process_start
from memtools.reports._html import html_table
from memtools.reports._text import text_report

if TYPE_CHECKING:
    from memtools.commands._recording import Recording

VARIABLE: Final = "MEMTOOLS_RUN_CHILD"
METER_VARIABLE: Final = "MEMTOOLS_METER"
_CHILD_PATH: Final = str(Path(__file__).parent / "child_path")
_PREFIX: Final = "memtools-run-"
_FIRST_SNAPSHOT_S: Final = 0.05
_SNAPSHOT_S: Final = 1.0
_MAX_LOG_BYTES: Final = 1 << 20
_MAX_REPORTS: Final = 1000  # files; each has some 10 KB
_MAX_TITLE: Final = 60


@record
class FamilyOptions:
    """What all processes of a run have in common.

    Attributes:
        title: what the program is called.
        meter: the name of the meter that counts.
        leaks: whether each searches for leaks.
        width: columns of the texts; None for the default.
        ascii_only: whether the texts have ASCII characters only.
        hidden: modules of memtools that the program must not meet, since it has others of these names.
        black_box: the folder of the black boxes of the Pythons that the program starts; None for none.
    """

    title: str
    meter: str
    leaks: bool
    width: int | None
    ascii_only: bool
    hidden: tuple[str, ...]
    black_box: str | None = None


class Family:
    """The processes of one run, by the folder in which they leave what they know.

    Args:
        folder: its path; only this user can read it.
        options: what all of them have in common.
    """

    def __init__(self, folder: str, options: FamilyOptions) -> None:
        self.folder = folder
        self.options = options
        self._is_python: dict[bytes, bool] = {}

    @classmethod
    def found(cls, options: FamilyOptions) -> "Family":
        """Make the folder for a run that begins.

        Raises:
            OSError: when there is no folder for temporary files that can be written.
        """
        _remove_left_folders()
        folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
        home = str(Path(memtools.__file__).parent.parent)
        _write(f"{folder}/python", "\n".join((sys.version.replace("\n", " "), sys.prefix, home)))
        _write(f"{folder}/options.json", json.dumps(as_dict(options)))
        return cls(folder, options)

    @classmethod
    def of_folder(cls, folder: str) -> "Family":
        """Return the family that a parent process has begun.

        Raises:
            OSError: when the folder is gone.
        """
        with open(f"{folder}/options.json", encoding="ascii") as file:
            fields: dict[str, Any] = json.load(file)
        fields["hidden"] = tuple(fields["hidden"])
        return cls(folder, FamilyOptions(**fields))

    def log(self, **entry: object) -> None:
        """Append to the log what happened to a process; nothing is written where that fails, or beyond 1 MiB."""
        line = json.dumps(entry).encode() + b"\n"
        with contextlib.suppress(OSError):
            number = os.open(f"{self.folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(number).st_size < _MAX_LOG_BYTES:
                    os.write(number, line)
            finally:
                os.close(number)

    def entries(self) -> list[dict[str, Any]]:  # Any: JSON
        """Return what was logged, in order."""
        try:
            with open(f"{self.folder}/log", encoding="ascii") as file:
                return [json.loads(line) for line in file if line.endswith("\n")]
        except OSError:
            return []

    def save(self, name: str, fields: Mapping[str, object]) -> None:
        """Write the report of a process, in place of an earlier one of that name.

        Raises:
            OSError: when it cannot be written, as after the end of the process that would read it.
        """
        path = f"{self.folder}/{name}.json"
        _write(f"{path}.new", json.dumps(fields))
        os.replace(f"{path}.new", path)

    def has_room(self) -> bool:
        """Return whether another report may be written."""
        try:
            return len(os.listdir(self.folder)) < _MAX_REPORTS
        except OSError:
            return False

    def saved(self) -> list[dict[str, Any]]:  # Any: JSON
        """Return the reports that were written."""
        found: list[dict[str, Any]] = []
        for path in sorted(Path(self.folder).glob("*-*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text(encoding="ascii")))
        return found

    def remove(self) -> None:
        """Remove the folder, also where other processes still write to it."""
        _remove_folder(self.folder)

    def prepare(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:  # Any: those of the function
        """Return the arguments with which to start a program: with another environment where it is this Python."""
        try:
            if name == "fork_exec":
                if self._is_followed(arguments[1], arguments[0]):
                    return (*arguments[:5], self._environment(arguments[5]), *arguments[6:])
            elif self._is_followed([arguments[0]], arguments[1]):
                variables = dict(line.split(b"=", 1) for line in self._environment(_lines(arguments[2])))
                return (*arguments[:2], variables, *arguments[3:])
        except (IndexError, TypeError, ValueError, AttributeError):  # the function itself says what is wrong
            return arguments
        return arguments

    def started(self, name: str, arguments: tuple[Any, ...], pid: int) -> None:
        """Log a program that was started; of its arguments only the name of a script, since they may be secret."""
        try:
            words = [os.fsdecode(word) for word in arguments[0 if name == "fork_exec" else 1]]
            candidates = arguments[1] if name == "fork_exec" else [arguments[0]]
            if _is_resource_tracker(words) or (name == "fork_exec" and not _first_executable(candidates)):
                return  # the latter ends at once: there is no such program
            title = os.path.basename(words[0])
            if self._is_followed(candidates, ()):
                title = f"{title} {command_title(words)}"
            self.log(event="start", pid=pid, title=printable(title, _MAX_TITLE))
        except (IndexError, TypeError, ValueError):
            return

    def _environment(self, lines: Sequence[bytes] | None) -> list[bytes]:
        found = list(environment_lines() if lines is None else lines)
        path = next((line[11:] for line in found if line.startswith(b"PYTHONPATH=")), None)
        kept = [line for line in found if not line.startswith((b"PYTHONPATH=", f"{VARIABLE}=".encode()))]
        folders = os.fsencode(_CHILD_PATH) + (b":" + path if path else b"")
        mark = b"0" if path is None else b"1"
        return [*kept, b"PYTHONPATH=" + folders, f"{VARIABLE}=".encode() + mark + b":" + os.fsencode(self.folder)]

    def _is_followed(self, candidates: Sequence[Any], words: Sequence[Any]) -> bool:  # Any: bytes or texts
        path = _first_executable(candidates)
        if not _imports_site([os.fsdecode(word) for word in words]):
            return False
        if path not in self._is_python:
            self._is_python[path] = _is_this_python(path) or _is_this_python(_interpreter_of_script(path))
        return self._is_python[path]


def _lines(variables: Mapping[Any, Any] | None) -> list[bytes] | None:  # Any: texts or bytes
    if variables is None:
        return None
    return [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in variables.items()]


def _first_executable(candidates: Sequence[Any]) -> bytes:  # Any: paths as bytes or texts
    return next((path for path in map(os.fsencode, candidates) if os.access(path, os.X_OK)), b"")


def _is_this_python(path: bytes) -> bool:
    """Return whether that is an interpreter of this environment: the same folder, by any name."""
    if not path or not sys.executable:
        return False
    own = os.fsencode(sys.executable)
    try:
        return os.path.samefile(os.path.dirname(path), os.path.dirname(own)) and os.path.samefile(path, own)
    except OSError:
        return False


def _imports_site(words: Sequence[str]) -> bool:
    """Return whether a Python of that command line looks at its environment, and imports `sitecustomize`."""
    for word in words[1:]:
        if not word.startswith("-") or word in ("-", "--") or word.startswith(("-c", "-m")):
            return True
        if not word.startswith(("--", "-W", "-X")) and set(word) & set("IES"):
            return False
    return True


def _interpreter_of_script(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            first = file.readline(400)
    except OSError:
        return b""
    words = first[2:].split() if first.startswith(b"#!") else []
    if len(words) > 1 and os.path.basename(words[0]) == b"env":
        import shutil

        return shutil.which(words[1]) or b""
    return words[0] if words else b""


def _write(path: str, text: str) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = os.fsencode(text)
        while rest:
            rest = rest[os.write(number, rest) :]
    finally:
        os.close(number)


def _remove_folder(folder: str) -> None:
    for _ in range(3):  # a process may add a file meanwhile
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)
            return


def _remove_left_folders() -> None:
    """Remove the folders of runs that were killed."""
    parent = tempfile.gettempdir()
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            pid = name.removeprefix(_PREFIX).partition("-")[0]
            if name.startswith(_PREFIX) and pid.isdigit() and not process_start(int(pid)):
                folder = f"{parent}/{name}"
                if os.lstat(folder).st_uid == os.getuid():
                    _remove_folder(folder)


class ChildSession:
    """The measurement of a child process, from its start or its fork to its end.

    Args:
        family: the processes of the run.
        is_fork: whether this process has just been forked.
    """

    def __init__(self, family: Family, *, is_fork: bool) -> None:
        self.pid = os.getpid()
        self._family = family
        self._is_fork = is_fork
        self._name = f"{self.pid}-{next(_sessions)}"
        self._busy = _thread.allocate_lock()
        self._is_finished = False
        options = family.options
        family.log(event="session", pid=self.pid, parent=os.getppid(), name=self._name, title=self._title())
        meter = choose_meter(options.meter)
        self._measurement = Measurement(self._title(), meter, leaks=options.leaks, is_fork=is_fork)
        # Not after a fork: a thread there would have the program warned of its own forks, and a forked process may be
        # one of thousands, each with a file of 2 MB.
        self._recording = None if is_fork else self._begin_recording()
        self._when_bootstrapped()

    def finish(self) -> None:
        """Write the last report, once; a failure in here does not change how the process ends."""
        if self._is_finished or os.getpid() != self.pid:
            return
        self._is_finished = True
        self._busy.acquire(timeout=1.0)  # a snapshot that is being written
        with own_modules(), contextlib.suppress(Exception):
            diagnosis = self._measurement.find_leaks()
            self._save(diagnosis, is_end=True)
        if self._recording is not None:
            self._recording.close()

    def _begin_recording(self) -> "Recording | None":
        folder = self._family.options.black_box
        if folder is None:
            return None
        from memtools.commands._recording import begin_recording  # most runs have none

        return begin_recording(folder, self._title())

    def _title(self) -> str:
        process: Any = sys.modules.get("multiprocessing.process")  # Any: a module
        if process is not None and process.parent_process() is not None:
            return printable(process.current_process().name, _MAX_TITLE)
        if "from multiprocessing.forkserver" in "".join(sys.orig_argv):
            return "multiprocessing forkserver"
        if self._is_fork:
            return f"{self._family.options.title} (fork)"
        return command_title(sys.orig_argv)

    def _save(self, diagnosis: Diagnosis | None, *, is_end: bool) -> None:
        options, title = self._family.options, self._title()
        report = self._measurement.report(title=f"{title}, process {self.pid}", is_end=is_end)
        lines = [] if diagnosis is None else [printable(line) for line in diagnosis.lines()]
        if not self._family.has_room():
            return
        text = text_report(report, width=options.width, ascii_only=options.ascii_only, has_legend=False)
        self._family.save(
            self._name,
            {
                "pid": self.pid,
                "parent": os.getppid(),
                "name": self._name,
                "title": title,
                "started": "fork" if self._is_fork else "exec",
                "ended": is_end,
                "private_bytes": memory_share(self.pid).private_bytes,
                "report": report.to_dict(),
                "leaks": None if diagnosis is None else diagnosis.to_dict(),
                "text": "\n".join([text, *lines]),
                "html": html_table(report),
            },
        )

    def _when_bootstrapped(self) -> None:
        """Begin to write while the process runs, once `multiprocessing` has made it a daemonic process of its own."""
        util: Any = sys.modules.get("multiprocessing.util")  # Any: a module
        if not self._is_fork and "--multiprocessing-fork" in sys.orig_argv:
            self._begin_snapshots()  # nothing calls back in a process that was not forked
        elif self._is_fork and util is not None:
            util.register_after_fork(self, ChildSession._begin_snapshots)

    def _begin_snapshots(self) -> None:
        if os.getpid() == self.pid and _is_daemonic() is not False:
            # Unknown to `threading`: the program's own counts and lists of threads do not change.
            _thread.start_new_thread(self._save_snapshots, ())

    def _save_snapshots(self) -> None:
        disregard_thread()
        pause_s = _FIRST_SNAPSHOT_S
        with contextlib.suppress(Exception):  # the folder is gone: its reader has ended
            while _is_daemonic() is not False:  # any other ends by itself
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _SNAPSHOT_S)
                with self._busy:
                    if self._is_finished:
                        return
                    self._save(None, is_end=False)


def _is_daemonic() -> bool | None:
    """Return whether this is a daemonic process of `multiprocessing`; None while that is not known."""
    process: Any = sys.modules.get("multiprocessing.process")  # Any: a module
    if process is None or process.parent_process() is None:
        return None
    return bool(process.current_process().daemon)


_sessions = count(time.time_ns())  # the same process id may come again
_family: Family | None = None
_child: ChildSession | None = None


def follow_children(family: Family) -> None:
    """Follow the child processes that this process starts from now on."""
    global _family
    _family = family
    read_process()  # what a reading needs is loaded before any fork
    register_after_fork(_after_fork)
    around_starts(family.prepare, family.started)


def finish_child() -> None:
    """Write the report of this process, if it is a child process of a run."""
    if _child is not None:
        _child.finish()


def join(folder: str, at_start: set[str]) -> None:
    """Measure this process, a Python that a program of a run has started.

    Args:
        folder: that of the family.
        at_start: the modules that were loaded before those of memtools.

    Raises:
        OSError: when the family is gone.
        MemtoolsError: when the meter is not available here.
    """
    global _child
    if _is_memtools_itself() or _is_resource_tracker(sys.orig_argv):
        return
    family = Family.of_folder(folder)
    hide_shadowed_modules(at_start=at_start, first=_first_folder(), also=family.options.hidden)
    with own_modules():
        if choose_meter().name != family.options.meter:
            os.environ[METER_VARIABLE] = family.options.meter
        _child = ChildSession(family, is_fork=False)
        follow_children(family)
    register_last(finish_child)
    before_death(finish_child)
    before_exit(finish_child)
    if not family.options.leaks:  # a search for leaks has to see every object
        freeze_existing()


def _after_fork() -> None:
    global _child
    if _family is not None:
        with contextlib.suppress(Exception):  # the child runs as it would alone
            _child = ChildSession(_family, is_fork=True)


def _is_memtools_itself() -> bool:
    words = sys.orig_argv[1:3]
    return words == ["-m", "memtools"] or (bool(words) and os.path.basename(words[0]) in ("memtools", "memtools.exe"))


def _is_resource_tracker(words: Sequence[str]) -> bool:
    """Return whether that is the process that `multiprocessing` starts to clean up; it ends after all others."""
    return "-c" in words and any(word.startswith("from multiprocessing.resource_tracker import") for word in words)


def _first_folder() -> str | None:
    """Return the folder that the interpreter is going to put in front of the search path."""
    program = sys.argv[0] if sys.argv else ""
    if sys.flags.safe_path:
        return None
    if program in ("", "-", "-c", "-m"):
        return ""
    is_searched = os.path.isdir(program) or program.endswith((".zip", ".pyz"))
    return program if is_searched else str(Path(program).resolve().parent)


def command_title(words: Sequence[str]) -> str:
    """Return what the program of a command line of Python is called in reports: nothing of its arguments."""
    rest = iter(words[1:])
    for word in rest:
        if word.startswith("-m"):
            return printable(word[2:] or next(rest, ""), _MAX_TITLE)
        if word.startswith("-c"):
            return "-c"
        if word in ("-W", "-X", "--check-hash-based-pycs"):
            next(rest, "")
        elif not word.startswith("-") or word == "-":
            return printable(os.path.basename(word.rstrip("/\\")) or word, _MAX_TITLE)
    return "interactive"
