"""A worker process: the messages to and from it, what it executes, and how its pool sees it.

A message is a header (its kind, its length, and in answers the anonymous memory of the worker after the task) and a
pickle. It is sent in chunks: a `Connection` that reads 100 MB at once makes a buffer of that size for each piece of it
that arrives, and the pool would wait for nothing else meanwhile. The worker has one task at a time, and is sent the
next one when it has answered: a task that could not be sent to a worker that had died has not begun.
"""

import io
import logging
import multiprocessing
import os
import pickle
import signal
import struct
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Final

from memtools._threads import OwnThread
from memtools.pools._in_flight import Place
from memtools.readings._process import anonymous_bytes

TASK: Final = 0  # the pickle is (function, arguments, keyword arguments); an empty message asks the worker to end
READY: Final = 1  # the pickle is empty
FAILED_TO_START: Final = 2  # the pickle is the text of a traceback
RETURNED: Final = 3  # the pickle is the result
RAISED: Final = 4  # the pickle is the exception and the text of its traceback
HEADER: Final = struct.Struct("=BQQ")
_CHUNK_BYTES: Final = 2**20

_log = logging.getLogger("memtools.pools")

# States of a worker.
STARTING: Final = "starting"
IDLE: Final = "idle"
RUNNING: Final = "running"
ENDING: Final = "ending"


class Inbox:
    """Puts a message together from its chunks."""

    __slots__ = ("_filled", "_message")

    def __init__(self) -> None:
        self._message: bytearray | None = None
        self._filled = 0

    def add(self, chunk: bytes) -> "bytes | bytearray | None":
        """Take a chunk; return the message that it completes, or None."""
        if self._message is None:
            size = HEADER.unpack_from(chunk)[1]
            if size <= len(chunk):
                return chunk
            self._message = bytearray(size)
            self._filled = 0
        end = self._filled + len(chunk)
        self._message[self._filled : end] = chunk
        self._filled = end
        if end < len(self._message):
            return None
        message, self._message = self._message, None
        return message


def pickled(kind: int, content: object) -> io.BytesIO:
    """Return a message.

    Raises:
        Exception: whatever the content's methods for pickling raise.
    """
    buffer = io.BytesIO()
    buffer.write(bytes(HEADER.size))
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(content)
    with buffer.getbuffer() as view:
        HEADER.pack_into(view, 0, kind, len(view), 0)
    return buffer


def send(connection: "Connection[Any, Any]", message: io.BytesIO) -> None:
    """Send a message.

    Raises:
        OSError: when the process at the other end has closed it.
    """
    with message.getbuffer() as view:
        for start in range(0, len(view), _CHUNK_BYTES):
            connection.send_bytes(view[start : start + _CHUNK_BYTES])


def content_of(message: "bytes | bytearray") -> Any:
    """Return what a message holds.

    Raises:
        Exception: whatever the content's methods for pickling raise.
    """
    return pickle.loads(memoryview(message)[HEADER.size :])


class RemoteTraceback(Exception):
    """The traceback of an exception of a worker, as text: the cause of the exception that the pool raises."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Task:
    """A call that was submitted to a process pool.

    Attributes:
        future: what the submitter waits for.
        call: function, arguments and keyword arguments; None once they are sent, so that they are kept no longer.
        label: the name of the function, for errors.
        context: where arguments are pickled and results unpickled: the owner that submits pays for both.
        place: its place in the pool.
        is_started: whether its future can no longer be cancelled.
        attempts: how often it was sent to a worker that turned out to be dead.
    """

    __slots__ = ("attempts", "call", "context", "future", "is_started", "label", "place")

    def __init__(
        self,
        call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]],
        label: str,
        context: Context,
        place: Place,
    ) -> None:
        self.future: Future[Any] = Future()
        self.call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = call
        self.label = label
        self.context = context
        self.place = place
        self.is_started = False
        self.attempts = 0

    def succeed(self, result: object) -> None:
        """End it with its result."""
        self.place.end("finished")
        _notify(self.future.set_result, result, self.label)

    def fail(self, error: BaseException) -> None:
        """End it with an error; nothing happens where it was cancelled."""
        if not self.is_started and not self.future.set_running_or_notify_cancel():
            return
        self.is_started = True
        self.place.end("failed")
        _notify(self.future.set_exception, error, self.label)


def _notify(set_outcome: Callable[[Any], object], outcome: object, label: str) -> None:
    # Other code may have set the outcome; and a callback of the future may raise what is no Exception, which must not
    # end the pool's thread.
    try:
        set_outcome(outcome)
    except BaseException:
        _log.exception("the outcome of %s could not be set", label)


class Worker:
    """What its pool knows of one worker process; used by the thread of the pool's manager.

    Attributes:
        process: the process.
        connection: the pool's end of its pipe.
        inbox: what has arrived of its next answer.
        state: `"starting"`, `"idle"`, `"running"` or `"ending"`.
        task: the task that it runs.
        replaces: the worker that is to end when this one is ready.
        is_draining: whether it gets no more tasks.
        retire_reason: why it is to be replaced; empty where it is not.
        tasks: how many tasks it has done.
        baseline_bytes: its anonymous memory after its first task; None before.
        growth_bytes: how much its anonymous memory has grown since.
        deadline: when it is ended by a signal, in seconds of the monotonic clock; None for never.
        signals: how many signals have been sent to end it.
        start_error: why it failed to start, as it says itself.
    """

    __slots__ = (
        "baseline_bytes", "connection", "deadline", "growth_bytes", "inbox", "is_draining", "pid",
        "private_bytes", "process", "pss_bytes", "ready_at", "replaces", "retire_reason", "signals",
        "start_error", "started_at", "state", "task", "tasks",
    )  # fmt: skip

    def __init__(self, process: BaseProcess, connection: "Connection[Any, Any]", now: float) -> None:
        self.process = process
        self.connection = connection
        self.inbox = Inbox()
        self.pid = process.pid or 0
        self.state: str = STARTING
        self.task: Task | None = None
        self.replaces: Worker | None = None
        self.is_draining = False
        self.retire_reason = ""
        self.tasks = 0
        self.started_at = self.ready_at = now
        self.baseline_bytes: int | None = None
        self.growth_bytes = 0
        self.pss_bytes: int | None = None
        self.private_bytes: int | None = None
        self.deadline: float | None = None
        self.signals = 0
        self.start_error = ""

    def observe(self, anonymous: int) -> None:
        """Take its memory after a task into account."""
        self.tasks += 1
        if self.baseline_bytes is None:
            self.baseline_bytes = anonymous
        self.growth_bytes = max(0, anonymous - self.baseline_bytes)

    def send_signal(self) -> None:
        """Send it SIGTERM, and SIGKILL the second time."""
        with suppress(OSError, ValueError):  # it has ended
            (self.process.kill if self.signals else self.process.terminate)()
        self.signals += 1

    def end_reason(self) -> str:
        """Return how it ended: the signal that killed it, or its exit status."""
        code = self.process.exitcode
        if code is None:
            return "closed its connection"
        if code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = "; the kernel does so where memory is short" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"

    def release(self) -> None:
        """Close the pipe, and wait for the process, which has ended."""
        self.connection.close()
        self.process.join()
        self.process.close()


def start_worker(
    context: Any, name: str, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], grace_s: float
) -> Worker:
    """Start a worker process; it says when it is ready.

    Any: the class of processes differs from context to context.

    Raises:
        Exception: whatever the start of a process raises, such as an OSError.
    """
    ours, its = multiprocessing.Pipe()
    # A forked process inherits the pool's end, too, and would keep the pipe open.
    to_close = ours if context.get_start_method() == "fork" else None
    try:
        process = context.Process(
            target=run_worker, args=(its, to_close, initializer, initargs, grace_s), name=name, daemon=False
        )
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    return Worker(process, ours, time.monotonic())


def run_worker(
    connection: "Connection[Any, Any]",
    to_close: "Connection[Any, Any] | None",
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    grace_s: float,
) -> None:
    """Execute tasks until the pool asks the worker to end, or is gone: what runs in the process."""
    if to_close is not None:
        to_close.close()
    _reset_signals()
    OwnThread(target=_end_with_parent, args=(grace_s,), name="memtools parent watch", daemon=True).start()
    try:
        if initializer is not None:
            initializer(*initargs)
    except BaseException:
        _send_answer(connection, pickled(FAILED_TO_START, traceback.format_exc()))
        return
    if _send_answer(connection, pickled(READY, None)):
        while (message := _receive(connection)) and _send_answer(connection, _execute(message)):
            del message  # it may be large, and is no part of what the task has left behind


def _receive(connection: "Connection[Any, Any]") -> "list[bytes | bytearray]":
    """Return the next message in a list, from which it can be taken; an empty list at the end."""
    inbox = Inbox()
    message = None
    while message is None:
        try:
            chunk = connection.recv_bytes()
        except (EOFError, OSError):
            return []  # the pool is gone
        if not chunk:
            return []
        message = inbox.add(chunk)
    return [message]


def _execute(message: "list[bytes | bytearray]") -> io.BytesIO:
    """Return the answer to a task, and take it out of the list. Nothing of it is kept, whatever it raises."""
    try:
        function, args, kwargs = content_of(message.pop())
        result = function(*args, **kwargs)
        del function, args, kwargs
        return pickled(RETURNED, result)
    except BaseException as error:  # as in ProcessPoolExecutor: also a SystemExit is the outcome of the task
        text = "".join(traceback.format_exception(error))
        error.__traceback__ = error.__cause__ = error.__context__ = None
        try:
            return pickled(RAISED, (error, text))
        except BaseException as refusal:
            shown = f"{type(error).__qualname__}, which cannot be pickled ({type(refusal).__qualname__}: {refusal})"
            return pickled(RAISED, (RuntimeError(f"the task raised {shown}"), text))


def _send_answer(connection: "Connection[Any, Any]", answer: io.BytesIO) -> bool:
    """Send an answer; return False where the pool is gone."""
    with answer.getbuffer() as view:
        # Of the task only its pickled result is alive here, and that is about to go.
        HEADER.pack_into(view, 0, view[0], len(view), max(0, _anonymous_bytes() - len(view)))
    try:
        send(connection, answer)
    except OSError:
        return False
    return True


def _anonymous_bytes() -> int:
    try:
        return anonymous_bytes()
    except OSError:
        return 0


def _reset_signals() -> None:
    # Where the pool forks, what asyncio or a server has set applies to this process as well: signals would be written
    # to the event loop of the parent.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C goes to all processes of the terminal; the pool decides when its workers end. A function, and not SIG_IGN,
    # which programs that a task starts would inherit.
    signal.signal(signal.SIGINT, _ignore)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    return


def _end_with_parent(grace_s: float) -> None:
    """End this process some time after the pool's process: an idle worker ends by itself, a running task may not."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    time.sleep(grace_s)
    os._exit(1)
