"""The manager of a process pool: one thread that starts, feeds, replaces and ends the workers.

The pool's object does not belong to it, so that a forgotten pool can be collected and end its workers. Traps:

- *One pipe for each worker.* With a common queue a worker that is killed in the middle of a message, or while it holds
  the queue's lock, would break it for all: `ProcessPoolExecutor` ends the whole pool then.
- *Replacement first.* A worker that has grown goes on until its replacement is ready, unless it has grown twice as
  much: with tasks of milliseconds it would leak without bound while the replacement starts.
- *One process more than workers*, never two: where a recycled worker takes its time to end, the next one waits.
"""

import atexit
import io
import logging
import multiprocessing
import socket
import struct
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, Final, TypeAlias

from memtools._forks import register_object_after_fork
from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools._threads import OwnThread
from memtools.errors import ScopeClosed, WorkerDied, WorkerStartFailed
from memtools.pools._worker import (
    ENDING,
    FAILED_TO_START,
    HEADER,
    IDLE,
    READY,
    RETURNED,
    RUNNING,
    STARTING,
    TASK,
    RemoteTraceback,
    Task,
    Worker,
    content_of,
    pickled,
    send,
    start_worker,
)
from memtools.readings._shares import memory_share
from memtools.units import format_size

EARLY_FACTOR: Final = 1.5  # a worker that has grown by so many times `recycle_above` is replaced, however young
HARD_FACTOR: Final = 2.0  # a worker that has grown by so many times `recycle_above` gets no more tasks
MAX_START_FAILURES: Final = 3
_MAX_SENDS: Final = 3
_RETRY_REPLACEMENT_S: Final = 5.0
_MEMORY_INTERVAL_S: Final = 1.0
_BUSY_TICK_S: Final = 2.0  # between two looks at the memory of workers that have long tasks
_MAX_MEMORY_SHARE: Final = 0.02  # of the manager's time for reading it
_EXIT_MARGIN_S: Final = 5.0

OPEN: Final = "open"
DRAINING: Final = "shutting down"
ABORTING: Final = "ending"
ENDED: Final = "ended"

Answered: TypeAlias = "tuple[Task, bytes | bytearray]"

_log = logging.getLogger("memtools.pools")


@record
class ProcessPoolSettings:
    """The arguments of a process pool, checked.

    Attributes:
        name: the name in reports.
        max_workers: how many tasks may run at once.
        start: how processes are started.
        recycle_above_bytes: the growth that has a worker replaced; None for never.
        max_tasks: how many tasks a worker does; None for any number.
        min_life_s: how old a worker is at least when it is replaced for its growth, in seconds.
        grace_s: seconds between the steps that end a worker.
        start_timeout_s: seconds that a worker has to become ready.
        initializer: called in each worker before its first task.
        initargs: its arguments.
    """

    name: str
    max_workers: int
    start: str
    recycle_above_bytes: int | None
    max_tasks: int | None
    min_life_s: float
    grace_s: float
    start_timeout_s: float
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]


class Manager:
    """Runs the tasks of one pool in worker processes.

    Attributes:
        state: `"open"`, `"shutting down"`, `"ending"` or `"ended"`.
        workers: the processes that have not been waited for.
        pending: the tasks that no worker has got.
        died: tasks that failed because their worker died.
        recycled: workers that were replaced.
        start_failures: workers that failed to start.
        ended: set when all workers have ended.

    Threads: `submit`, `close`, `abort` and `recycle` from any; the rest runs in the manager's own thread.
    """

    def __init__(self, settings: ProcessPoolSettings) -> None:
        self.settings = settings
        self.state: str = OPEN
        self.workers: list[Worker] = []
        self.pending: deque[Task] = deque()
        self.died = self.recycled = self.start_failures = 0
        self.ended = threading.Event()
        self._context = multiprocessing.get_context(settings.start)
        self._lock = threading.RLock()  # a finaliser may end the pool in the middle of an operation
        self._thread: threading.Thread | None = None
        self._wake_reader: socket.socket | None = None
        self._wake_writer: socket.socket | None = None
        self._is_woken = False
        self._wants_recycling = False
        self._start_failures_in_a_row = 0
        self._next_replacement_at = self._next_memory_at = self._next_look_at = 0.0
        self._started = 0
        self._warnings = RateLimitedLogger(_log, interval_s=60.0)
        register_object_after_fork(self, Manager._after_fork)

    @property
    def has_started(self) -> bool:
        """Whether a thread, and perhaps processes, have to be ended."""
        return self._thread is not None

    def submit(self, task: Task) -> None:
        """Have a worker run a task.

        Raises:
            ScopeClosed: when the pool accepts none.
            RuntimeError: when the manager's thread cannot be started.
        """
        with self._lock:
            if self.state != OPEN:
                raise ScopeClosed(self.settings.name, f"it is {self.state}" if self.state != ENDED else "it has ended")
            self._ensure_started()
            self.pending.append(task)
        self._wake()

    def close(self, *, cancel_futures: bool) -> None:
        """Accept no more tasks, and end the workers after the last one."""
        with self._lock:
            if self.state == OPEN:
                self.state = DRAINING if self._thread is not None else ENDED
            cancelled = self._take_pending() if cancel_futures else []
        if self.state == ENDED:
            self.ended.set()
        for task in cancelled:
            task.future.cancel()
        self._wake()

    def abort(self) -> None:
        """Cancel the tasks that wait, and end the workers, by signals."""
        self.close(cancel_futures=True)
        with self._lock:
            if self.state != ENDED:
                self.state = ABORTING
        self._wake()

    def recycle(self) -> None:
        """Have the workers end after the tasks that they run; new ones start when they are needed."""
        self._wants_recycling = True
        self._wake()

    def wait_ended(self) -> None:
        """Wait until all workers have ended; while the pool is being aborted, not for ever."""
        if threading.current_thread() is self._thread:
            return  # a callback of a future: this thread ends the pool when the callback has returned
        limit_s = 2 * self.settings.grace_s + _EXIT_MARGIN_S
        end_at: float | None = None
        while not self.ended.wait(0.5):
            if end_at is None and self.state == ABORTING:
                end_at = time.monotonic() + limit_s
            if end_at is None or time.monotonic() < end_at:
                continue
            # The thread hangs: in a write to a process that was stopped, or in code of the program that unpickles.
            for worker in list(self.workers):
                with suppress(OSError, ValueError):
                    worker.process.kill()
            if not self.ended.wait(_EXIT_MARGIN_S):
                _log.error("%s did not end: its manager hangs; its workers have been killed", self.settings.name)
            return
        thread = self._thread
        if thread is not None:
            thread.join(_EXIT_MARGIN_S)  # it is about to end

    # From here on: the manager's own thread.

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # a fault of memtools must not leave futures that are never done
            self.state = ABORTING
            _log.exception("the manager of %s failed; its tasks fail, and its workers are killed", self.settings.name)
            self._fail_all(error)
        finally:
            self._end()

    def _step(self) -> bool:
        """Do what is to be done, and wait for the next event; return False at the end."""
        now = time.monotonic()
        if self._wants_recycling:
            self._wants_recycling = False
            self._drain_all()
        self._send_due_signals(now)
        if self.state == ABORTING:
            self._abort_workers(now)
        else:
            self._drop_cancelled()
            self._start_needed(now)
            self._dispatch()
            self._end_idle(now)
        with self._lock:
            if self.state != OPEN and not self.workers and not self.pending:
                self.state = ENDED
                return False
        self._wait(now)
        return True

    def _wait(self, now: float) -> None:
        reader = self._wake_reader
        assert reader is not None
        by_event: dict[Any, Worker] = {}  # Any: connections and descriptors
        for worker in self.workers:
            by_event[worker.process.sentinel] = worker
            if not worker.connection.closed:
                by_event[worker.connection] = worker
        ready = wait([reader, *by_event], self._timeout(now))
        if reader in ready:
            with suppress(BlockingIOError):
                reader.recv(4096)
            self._is_woken = False  # after the read, which would else take the byte of a later call with it

        answers = [
            (worker, message)
            for event in ready
            if event is not reader and not isinstance(event, int)
            for worker in [by_event[event]]
            if (message := self._receive(worker)) is not None
        ]
        finished = [(task, message) for worker, message in answers if (task := self._observe(worker, message))]
        for event in ready:
            if isinstance(event, int):
                finished += self._on_end(by_event[event])
        # The workers get their next tasks before the results are unpickled.
        if finished and self.state != ABORTING:
            self._dispatch()
        while finished:
            _finish(*finished.pop(0))
        now = time.monotonic()
        self._read_memory(now)
        self._look_for_ended(now)

    def _timeout(self, now: float) -> float | None:
        moments = [worker.deadline for worker in self.workers if worker.deadline is not None]
        if any(worker.state == RUNNING for worker in self.workers):
            moments.append(max(now + _BUSY_TICK_S, self._next_memory_at))
        if self._next_replacement_at > now:
            moments.append(self._next_replacement_at)
        return max(0.0, min(moments) - now) if moments else None

    def _receive(self, worker: Worker) -> "bytes | bytearray | None":
        """Return the answer that the next chunk completes."""
        try:
            return worker.inbox.add(worker.connection.recv_bytes())
        except (EOFError, OSError, MemoryError, struct.error):
            # It has died, or its task has closed the pipe or written into it: it is of no use any more, alive or not.
            worker.connection.close()
            if worker.state != ENDING:
                worker.signals = 1
                worker.send_signal()
            return None

    def _observe(self, worker: Worker, message: "bytes | bytearray") -> Task | None:
        """Take an answer into account; return the task that it ends."""
        kind, _, anonymous = HEADER.unpack_from(message)
        if kind == READY:
            self._on_ready(worker)
        elif kind == FAILED_TO_START:
            worker.start_error = content_of(message)
        task = worker.task
        if task is None:
            return None
        worker.task = None
        worker.observe(anonymous)
        if worker.state == RUNNING:
            worker.state = IDLE
            self._check_growth(worker, time.monotonic())
        return task

    def _on_ready(self, worker: Worker) -> None:
        if worker.state != STARTING:
            return
        worker.state, worker.deadline, worker.ready_at = IDLE, None, time.monotonic()
        self._start_failures_in_a_row = 0
        _read_memory_of(worker)
        replaced, worker.replaces = worker.replaces, None
        if replaced is not None and replaced.state != ENDING:
            replaced.is_draining = True

    def _check_growth(self, worker: Worker, now: float) -> None:
        above = self.settings.recycle_above_bytes
        if above is None or worker.growth_bytes < above:
            return
        age_s = now - worker.ready_at
        factor = worker.growth_bytes / above
        if age_s < self.settings.min_life_s:
            if factor < EARLY_FACTOR:
                return
            self._warnings.warning(
                "young", "%s recycles a worker after %.1f s and %d tasks: it has grown by %s, and recycle_above is %s; "
                "its tasks leak fast, or recycle_above is too small for them",
                self.settings.name, age_s, worker.tasks, format_size(worker.growth_bytes), format_size(above),
            )  # fmt: skip
        worker.retire_reason = f"grown by {format_size(worker.growth_bytes)}"
        worker.is_draining = worker.is_draining or factor >= HARD_FACTOR

    def _on_end(self, worker: Worker) -> list[Answered]:
        """Remove a worker whose process has ended; return the task that it still answered."""
        finished: list[Answered] = []
        with suppress(OSError):
            while not worker.connection.closed and worker.connection.poll():
                message = self._receive(worker)
                if message is not None and (task := self._observe(worker, message)) is not None:
                    finished.append((task, message))
        worker.process.join(_EXIT_MARGIN_S)
        if worker.process.exitcode is None:  # its task has closed the descriptor that tells of its end
            worker.process.kill()
        reason = worker.end_reason()
        self.workers.remove(worker)
        worker.release()
        if worker.is_draining and worker.task is None:
            self.recycled += 1
        for other in self.workers:
            if other.replaces is worker:
                other.replaces = None
        task, worker.task = worker.task, None
        if task is not None:
            self._fail_running(task, worker, reason)
        elif worker.state == STARTING:
            self._on_start_failed(worker.start_error or f"it {reason} before it was ready; see its standard error")
        return finished

    def _fail_running(self, task: Task, worker: Worker, reason: str) -> None:
        if self.state == ABORTING:
            task.fail(ScopeClosed(self.settings.name, f"it was ended while {task.label} ran"))
            return
        self.died += 1
        task.fail(WorkerDied(self.settings.name, task.label, worker.pid, reason))

    def _on_start_failed(self, reason: str) -> None:
        self.start_failures += 1
        self._start_failures_in_a_row += 1
        self._next_replacement_at = time.monotonic() + _RETRY_REPLACEMENT_S
        if self._start_failures_in_a_row < MAX_START_FAILURES or self._serving(IDLE, RUNNING):
            return
        # Each further task gets one attempt: a pool that cannot start workers says so for each of its tasks.
        task = next((task for task in iter(self._pop_pending, None) if not task.future.cancelled()), None)
        if task is not None:
            attempts = self._start_failures_in_a_row
            task.fail(WorkerStartFailed(self.settings.name, task.label, attempts, reason))

    def _start_needed(self, now: float) -> None:
        for worker in self.workers:
            replaced = worker.replaces
            if replaced is not None and (replaced.is_draining or replaced.state == ENDING):
                worker.replaces = None  # that one could not wait for it: it is a worker like the others now
        wanted = min(self.settings.max_workers, len(self.pending) + self._serving(RUNNING))
        attempts = 1 if self._start_failures_in_a_row >= MAX_START_FAILURES else wanted
        if self._start_failures_in_a_row and self._serving(IDLE, RUNNING) and now < self._next_replacement_at:
            return
        while (
            self._serving(STARTING, IDLE, RUNNING) < wanted
            and self._serving(STARTING) < attempts
            and len(self.workers) <= self.settings.max_workers
            and self.pending
        ):
            if self._start(None) is None and self._serving(IDLE, RUNNING):
                break
        self._start_replacement(now)

    def _start_replacement(self, now: float) -> None:
        if len(self.workers) > self.settings.max_workers or now < self._next_replacement_at or self.state != OPEN:
            return
        if any(worker.replaces is not None for worker in self.workers):
            return  # one at a time
        retiring = (
            worker for worker in self.workers
            if worker.retire_reason and not worker.is_draining and worker.state in (IDLE, RUNNING)
        )  # fmt: skip
        worker = next(retiring, None)
        if worker is not None:
            self._start(worker)

    def _start(self, replaces: Worker | None) -> Worker | None:
        settings = self.settings
        self._started += 1
        try:
            worker = start_worker(
                self._context, f"{settings.name}-{self._started}", settings.initializer, settings.initargs,
                settings.grace_s,
            )  # fmt: skip
        except Exception as error:
            self._on_start_failed(f"{type(error).__qualname__}: {error}")
            return None
        worker.replaces = replaces
        worker.deadline = worker.started_at + settings.start_timeout_s
        _read_memory_of(worker)
        self.workers.append(worker)
        return worker

    def _dispatch(self) -> None:
        """Send waiting tasks to idle workers."""
        for worker in self.workers:
            if worker.state != IDLE or worker.is_draining:
                continue
            while worker.task is None and worker.state == IDLE and (task := self._pop_pending()) is not None:
                message = _message_of(task)
                if message is not None:
                    self._send(worker, task, message)

    def _send(self, worker: Worker, task: Task, message: io.BytesIO) -> None:
        try:
            send(worker.connection, message)
        except OSError as error:
            # It has died since; the message is not whole, so the task has not begun.
            worker.state = ENDING
            worker.signals = 1
            worker.send_signal()
            task.attempts += 1
            if task.attempts < _MAX_SENDS:
                self.pending.appendleft(task)
            else:
                self.died += 1
                task.fail(WorkerDied(self.settings.name, task.label, worker.pid, f"could not be sent it: {error}"))
            return
        task.call = None
        worker.task, worker.state = task, RUNNING
        if self.settings.max_tasks is not None and worker.tasks + 1 >= self.settings.max_tasks:
            worker.is_draining = True
            worker.retire_reason = f"{worker.tasks + 1} tasks"

    def _end_idle(self, now: float) -> None:
        """Ask workers to end that get no more tasks."""
        is_over = self.state == DRAINING and not self.pending
        for worker in self.workers:
            if worker.state == IDLE and (worker.is_draining or is_over):
                self._ask_to_end(worker, now)
            elif worker.state == STARTING and is_over and not worker.signals:
                worker.state = ENDING
                worker.deadline = now

    def _ask_to_end(self, worker: Worker, now: float) -> None:
        worker.state = ENDING
        worker.deadline = now + self.settings.grace_s
        try:
            worker.connection.send_bytes(b"")
        except OSError:
            return  # it ends already

    def _abort_workers(self, now: float) -> None:
        for task in self._take_pending():  # one that the manager has put back
            task.fail(ScopeClosed(self.settings.name, f"it was ended before {task.label} ran"))
        for worker in self.workers:
            if worker.state == IDLE:
                self._ask_to_end(worker, now)
            elif worker.state != ENDING:
                worker.state = ENDING
                worker.deadline = now  # a task that runs is not waited for

    def _send_due_signals(self, now: float) -> None:
        for worker in self.workers:
            if worker.deadline is None or now < worker.deadline:
                continue
            if worker.state == STARTING and not worker.start_error:
                worker.start_error = f"it was not ready after {self.settings.start_timeout_s:g} s"
            worker.send_signal()
            worker.deadline = now + self.settings.grace_s if worker.signals < 2 else now + _EXIT_MARGIN_S

    def _drain_all(self) -> None:
        for worker in self.workers:
            if worker.state in (IDLE, RUNNING) and worker.tasks:
                worker.is_draining = True
                worker.retire_reason = worker.retire_reason or "memory is short"

    def _read_memory(self, now: float) -> None:
        if now < self._next_memory_at:
            return
        for worker in list(self.workers):
            _read_memory_of(worker)
        ended = time.monotonic()
        self._next_memory_at = ended + max(_MEMORY_INTERVAL_S, (ended - now) / _MAX_MEMORY_SHARE)

    def _look_for_ended(self, now: float) -> None:
        """Notice a worker that has ended while a process that its task has forked keeps its pipes open."""
        if now < self._next_look_at:
            return
        self._next_look_at = now + _BUSY_TICK_S
        for worker in list(self.workers):
            if worker.process.exitcode is not None:
                for answered in self._on_end(worker):
                    _finish(*answered)

    def _drop_cancelled(self) -> None:
        while (task := self._pop_pending()) is not None:
            if task.is_started or not task.future.cancelled():
                self.pending.appendleft(task)
                return
            task.future.set_running_or_notify_cancel()

    def _serving(self, *states: str) -> int:
        return sum(
            worker.state in states and not worker.is_draining and worker.replaces is None for worker in self.workers
        )

    def _pop_pending(self) -> Task | None:
        try:
            return self.pending.popleft()
        except IndexError:
            return None

    def _take_pending(self) -> list[Task]:
        return list(iter(self._pop_pending, None))  # one by one: the manager may put one back meanwhile

    def _fail_all(self, error: BaseException) -> None:
        for worker in list(self.workers):
            with suppress(OSError, ValueError):
                worker.process.kill()
            if worker.task is not None:
                worker.task.fail(error)
            with suppress(OSError, ValueError):
                worker.release()
        for task in self._take_pending():
            task.fail(error)
        self.workers.clear()

    def _end(self) -> None:
        with self._lock:
            self.state = ENDED
            left = self._take_pending()
            reader, writer, self._wake_reader, self._wake_writer = self._wake_reader, self._wake_writer, None, None
        for task in left:
            task.fail(ScopeClosed(self.settings.name, "it has ended"))
        for end in (reader, writer):
            if end is not None:
                end.close()
        self.ended.set()

    def _ensure_started(self) -> None:
        if self._thread is not None:
            return
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._wake_reader, self._wake_writer = reader, writer
        thread = OwnThread(target=self._run, name=f"memtools {self.settings.name} manager", daemon=True)
        try:
            thread.start()
        except BaseException:
            self._wake_reader = self._wake_writer = None
            reader.close()
            writer.close()
            raise
        self._thread = thread
        _managers.add(self)
        _end_at_exit.register()

    def _wake(self) -> None:
        writer = self._wake_writer
        if writer is None or self._is_woken:
            return
        self._is_woken = True
        with suppress(OSError):  # it is full, or the manager has ended
            writer.send(b"\0")

    def _after_fork(self) -> None:
        # In a forked child there is neither the thread nor a worker of its own. As long as it had the pipes open, a
        # worker would not notice the end of the parent.
        _managers.discard(self)
        self.state, self.ended = ENDED, threading.Event()
        self.ended.set()
        for worker in self.workers:
            with suppress(OSError):
                worker.connection.close()
        for end in (self._wake_reader, self._wake_writer):
            if end is not None:
                end.close()
        self._lock = threading.RLock()


def _read_memory_of(worker: Worker) -> None:
    share = memory_share(worker.pid)
    worker.pss_bytes, worker.private_bytes = share.pss_bytes, share.private_bytes


def _message_of(task: Task) -> io.BytesIO | None:
    """Return the message of a task that begins; None if it was cancelled, or cannot be pickled and has failed."""
    if not task.is_started and not task.future.set_running_or_notify_cancel():
        return None
    task.is_started = True
    try:
        return task.context.run(pickled, TASK, task.call)
    except BaseException as error:  # the ledger may stop an owner over its budget by one, and the manager goes on
        error.add_note(f"while the arguments of {task.label} were pickled")
        task.fail(error)
        return None


def _finish(task: Task, message: "bytes | bytearray") -> None:
    """Set the outcome of a task that its worker has answered."""
    try:
        content = task.context.run(content_of, message)
        if message[0] == RETURNED:
            task.succeed(content)
            return
        raised, text = content
        if not isinstance(raised, BaseException):
            raised = TypeError(f"the exception of {task.label} was unpickled as {type(raised).__qualname__}")
    except BaseException as error:  # as in `_message_of`
        error.add_note(f"while the result of {task.label} was unpickled")
        task.fail(error)
        return
    raised.__cause__ = RemoteTraceback(text)
    task.fail(raised)


class _EndAtExit:
    """Ends pools that were never shut down when the interpreter ends, before multiprocessing waits for processes."""

    def __init__(self) -> None:
        self._is_registered = False

    def register(self) -> None:
        if not self._is_registered:
            self._is_registered = True
            # Functions run in reverse order; that of multiprocessing is registered since the import above.
            atexit.register(self._end)

    def _end(self) -> None:
        managers = [manager for manager in _managers if manager.state != ENDED]
        for manager in managers:
            if manager.state != OPEN:
                continue  # shut down without waiting: its tasks are waited for here, as those of an executor are
            warnings.warn(f"{manager.settings.name} was never shut down", ResourceWarning, stacklevel=2)
            manager.abort()
        for manager in managers:
            manager.wait_ended()


_managers: "weakref.WeakSet[Manager]" = weakref.WeakSet()
_end_at_exit = _EndAtExit()
