"""The black box of a process: opened, written at each reading, ended."""

import atexit
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from memtools._forks import register_object_after_fork
from memtools._identity import command_line, identity
from memtools._safe_calls import RateLimitedLogger
from memtools._threads import OwnThread
from memtools.black_box._file import BoxFile
from memtools.black_box._folder import claim_killed, new_path, parse_folder, parse_program_name, warn_of_folder
from memtools.black_box._last_words import LastWords
from memtools.black_box._layout import ENDED
from memtools.black_box._mailbox import Mailbox, Question
from memtools.black_box._mirror import LedgerMirror
from memtools.black_box._reader import read_black_box
from memtools.events import BlackBoxFound, emit
from memtools.readings import Level, Reading, resident_bytes
from memtools.readings._traces import MemoryCgroup, own_memory_cgroup, pid_namespace

_REPEAT_S: Final = 300.0  # between two messages of the same trouble
_WRITE_S: Final = 1.0  # a write takes some microseconds

_log = logging.getLogger("memtools.black_box")


class BlackBox:
    """A file that says who held what, for after the process was killed.

    ```python
    import tempfile
    from memtools import memory_scope
    from memtools.black_box import BlackBox, read_black_box

    with tempfile.TemporaryDirectory() as folder, BlackBox(folder, name="service") as box:
        with memory_scope("import"):
            rows = [str(number) for number in range(10_000)]
            found = read_black_box(box.path)  # as after a SIGKILL at this moment
    assert found.verdict == "alive"
    ```

    With the native ledger each owner's bytes are in the file at every instant, to the block, for about one per cent of
    the time of a program that does nothing but allocate. `MemoryMonitor(black_box=...)` opens one, and adds readings
    and last words; without the native ledger these are all there is.

    Args:
        folder: where the file goes; by default `/dev/shm`, else the folder for temporary files.
        name: what the program is called, in the name of the file; by default that of the script.
        names: whether the names of owners are written. They may come from requests; the file can be read by this user
            only.

    Raises:
        ConfigError: for a folder that does not exist, cannot be written, or is on a network.

    Threads: every method may be called from any thread. Fork: the file stays the parent's; the child makes one of its
    own at its first `observe`, where the parent's was open.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, name: str | None = None, names: bool = True
    ) -> None:
        self.folder: str = parse_folder(True if folder is None else folder, name="folder")
        self._name = parse_program_name(name)
        self._names = bool(names)
        # Never waited for for long, so a signal handler, a finaliser or a fork in between does no harm.
        self._lock = threading.Lock()
        self._file: BoxFile | None = None
        self._mirror = LedgerMirror(names=self._names)
        self._cgroup: MemoryCgroup | None = None
        self._last_words = LastWords()
        self._mailbox = Mailbox()
        self._has_ended = threading.Event()
        self._warnings = RateLimitedLogger(_log, interval_s=_REPEAT_S)
        self._is_wanted_in_child = False
        self._has_finaliser = False
        register_object_after_fork(self, BlackBox._after_fork)

    @property
    def path(self) -> str:
        """The path of the file; empty while there is none."""
        file = self._file
        return "" if file is None else file.path

    @property
    def counts_owners(self) -> bool:
        """Whether the native ledger writes into the file."""
        return self._file is not None and not self._mirror.why_not

    def open(self) -> None:
        """Make the file, tell of boxes that dead processes of the same name have left, and begin to write.

        Raises:
            OSError: where the file cannot be made, as on a full disk; nothing is left behind then.
        """
        if self._file is not None:
            return
        warn_of_folder(self.folder)
        self._open()
        self._is_wanted_in_child = True

    def close(self) -> None:
        """Write that this is a regular end, and let go of the file; a second call does nothing."""
        self._is_wanted_in_child = False
        has_lock = self._lock.acquire(timeout=_WRITE_S)  # a reading that is just being written
        try:
            self._end()
        finally:
            if has_lock:
                self._release()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def observe(self, reading: Reading, level: Level = Level.NORMAL) -> None:
        """Write a reading; the monitor does it at each sample.

        Nothing is raised: trouble with the file is logged, and the program goes on. In the child of a fork this makes
        a file of its own.

        Args:
            reading: memory in use, and the limit.
            level: how short memory is.
        """
        if not self._lock.acquire(blocking=False):
            return  # another thread is writing one
        try:
            if self._file is None and self._is_wanted_in_child:
                self._open()
            file = self._file
            if file is None:
                return
            if level is Level.NORMAL:
                self._last_words.reset()
            counted = self._mirror.check()
            cgroup = self._cgroup
            usage, kills = (None, None) if cgroup is None else (cgroup.held_bytes(), cgroup.oom_kills())
            file.write_reading(reading.used_bytes, reading.limit_bytes, usage, counted, kills, level)
        except Exception as error:
            self._is_wanted_in_child = self._file is not None
            self._warn(error)
        finally:
            self._release()

    def write_last_words(self, reading: Reading, level: Level, *, owners: tuple[tuple[str, int], ...] = ()) -> None:
        """Write what a reader wants to know of a process that was killed soon after: stacks, owners, what grows.

        The monitor does it where the level rises. Nothing is raised. It walks the heap, some 0.3 s for each million of
        objects, unless too little memory is left for that.

        Args:
            reading: memory in use, and the limit.
            level: how short memory is.
            owners: the largest owners, as (name, bytes), the largest first.
        """
        # Not given up for a reading that another thread is just writing: these words come once.
        if not self.path or not self._lock.acquire(timeout=_WRITE_S):
            return
        try:
            file = self._file
            if file is None:
                return
            text = self._last_words.short(level.name.lower(), reading, owners if self._names else ())
            file.write_last_words(text)
            file.write_last_words(f"{text}\n{self._last_words.heap(reading)}")
        except Exception as error:  # MemoryError among them
            self._warn(error)
        finally:
            self._release()

    def look_for_question(self, *, report: Callable[[], str] | None = None, interval_s: float = 1.0) -> None:
        """Answer what another process of this user asks by `memtools attach`, in a thread of its own.

        The monitor does it once a second. Nothing is raised. Where there is no question it takes some microseconds. One
        question is answered at a time; none is with `names=False`, since an answer is a file with names, too.

        Args:
            report: returns what is answered to `memtools attach PID report`.
            interval_s: seconds to the next call, for the process that asks to know.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            file = self._file
            question = None if file is None else self._mailbox.look(file, interval_s)
            if file is None or question is None:
                return
            arguments = file, self._mailbox, question, report, self._has_ended.wait
            try:
                OwnThread(target=self._answer, args=arguments, name="memtools-attach", daemon=True).start()
            except RuntimeError as error:  # no thread can be started
                self._mailbox.finish(file, question, {"refused": str(error)})
        except Exception as error:
            self._warn(error)
        finally:
            self._release()

    def __repr__(self) -> str:
        return f"<BlackBox {self.path or 'closed'}>"

    def _open(self) -> None:
        killed = claim_killed(self.folder, self._name)
        self._make()
        for path in killed[:1]:
            self._tell_of(path)

    def _make(self) -> None:
        self._cgroup = own_memory_cgroup()
        path = new_path(self.folder, self._name, time.time_ns() // 1_000_000)
        file = BoxFile.create(path, self._description())
        try:
            self._mirror.open(file)
            file.publish(path)
        except BaseException:
            self._mirror.close()
            with suppress(OSError):
                os.unlink(file.path)
            file.close()
            raise
        self._file = file
        self._mailbox, self._has_ended = Mailbox(), threading.Event()
        atexit.register(self._end)
        self._end_with_multiprocessing()

    def _description(self) -> dict[str, object]:
        cgroup = self._cgroup
        # What a verdict needs comes first: the last entries are left out where there is too little room.
        found: dict[str, object] = {
            "name": self._name,
            "pid_namespace": pid_namespace(),
            "resident_at_open": _resident_or_none(),
            "cgroup": None if cgroup is None else [cgroup.version, cgroup.directory, cgroup.inode],
            "cgroup_limit": None if cgroup is None else cgroup.limit_bytes(),
            "python": platform.python_version(),
        }
        found.update((label, text) for label, text in identity() if label != "command")
        return found | {"command": command_line()}

    def _end_with_multiprocessing(self) -> None:
        # A child process of multiprocessing ends by `os._exit` after its finalisers, without `atexit`.
        process: Any = sys.modules.get("multiprocessing.process")  # Any: a module
        if process is None or process.parent_process() is None:
            return
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.Finalize(self, self._end, exitpriority=-100)

    def _end(self) -> None:
        file, self._file = self._file, None
        atexit.unregister(self._end)
        if file is None:
            return
        self._has_ended.set()
        self._mailbox.close()
        self._mirror.close()
        try:
            file.write_state(ENDED)
        except OSError as error:
            self._warn(error)
        file.close()

    def _answer(
        self,
        file: BoxFile,
        mailbox: Mailbox,
        question: Question,
        report: Callable[[], str] | None,
        wait: Callable[[float], object],
    ) -> None:
        answer: dict[str, object]
        try:
            if self._names:
                from memtools.black_box._answers import answer as make_answer  # hardly any process is ever asked

                answer = make_answer(question.word, question.seconds, report=report, wait=wait)
            else:
                answer = {"refused": "BlackBox(names=False) keeps the names of owners out of files"}
        except Exception as error:  # MemoryError among them; the program goes on
            answer = {"refused": f"it failed: {type(error).__name__}: {error}"}
        # `finish` sets what `look` reads, so it takes the lock; a reading is written in less time.
        has_lock = self._lock.acquire(timeout=_WRITE_S)
        try:
            mailbox.finish(file, question, answer)
        except Exception as error:
            if self._file is file:
                self._warn(error)
        finally:
            if has_lock:
                self._release()

    def _tell_of(self, path: str) -> None:
        try:
            found = read_black_box(path)
        except Exception:  # it may be anything: this one could not even be read
            return
        _log.warning("An earlier run has left no end: %s; python -m memtools postmortem %s", found.summary, path)
        emit(BlackBoxFound(path, found.verdict, found.summary))

    def _warn(self, error: Exception) -> None:
        self._warnings.warning("write", "black box: %s is not written: %s", self.path or self.folder, error)

    def _release(self) -> None:
        with suppress(RuntimeError):  # of a lock that is new, since this process was forked in the middle
            self._lock.release()

    def _after_fork(self) -> None:
        file, self._file = self._file, None
        self._lock = threading.Lock()
        self._mailbox, self._has_ended = Mailbox(), threading.Event()  # the answers are the parent's
        self._mirror.close()
        self._last_words.reset()
        atexit.unregister(self._end)
        if file is not None:
            file.close()


def _resident_or_none() -> int | None:
    try:
        return resident_bytes()
    except OSError:
        return None
