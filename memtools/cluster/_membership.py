"""The membership of this process in a pool: the thread that talks to the carrier, and the leases that are held."""

import contextlib
import logging
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from memtools._forks import register_object_after_fork
from memtools._threads import OwnThread
from memtools.cluster._carrier import Carrier, CarrierError, HeldLease, LeaseRequest, Node, PoolFigures, usable_bytes
from memtools.readings import Level, headroom, take_reading
from memtools.units import format_size

T = TypeVar("T")

_log = logging.getLogger("memtools.cluster")

CALL_S: Final = 1.0  # after which the carrier gives up
ANSWER_S: Final = 2 * CALL_S + 0.5  # after which no caller waits any longer; there may be one call before it
_INTERVAL_S: Final = 2.0
_LOCAL: Final = "local:"


class LeaseState:
    """What is known of a lease.

    Args:
        size_bytes: how much of the budget.
        on_lost: called once where it expires while it is held.

    Attributes:
        id: that of the request.
        fence: the carrier's answer; empty before it is granted.
        is_local: whether this process granted it itself.
        valid_until: seconds of `time.monotonic()`.
        is_given_back: whether it has ended.
        process: the process that asked for it; 0 before.
    """

    __slots__ = ("fence", "id", "is_given_back", "is_local", "on_lost", "process", "size_bytes", "valid_until")

    def __init__(self, size_bytes: int, on_lost: Callable[[], object]) -> None:
        self.id: str = uuid.uuid4().hex
        self.size_bytes: int = size_bytes
        self.on_lost: Callable[[], object] = on_lost
        self.fence: str = ""
        self.is_local: bool = False
        self.valid_until: float = 0.0
        self.is_given_back: bool = False
        self.process: int = 0

    @property
    def is_lost(self) -> bool:
        """Whether it has expired before it was given back."""
        return bool(self.fence) and not self.is_given_back and time.monotonic() >= self.valid_until


class Membership:
    """One process in a pool, through forks: a child joins as a process of its own when it is first used there.

    Args:
        carrier: where the pool is kept.
        budget_bytes: what the pool may use.
        name: what this process is called.
        ttl_s: seconds for which a lease is valid without being renewed.

    Attributes:
        level: returns how short memory is here.
        known_nodes: how many processes there were when that was last asked.
        granted: how many leases it was granted.
        refused: how many it was not granted in time.
        lost: how many have expired while it held them.
    """

    def __init__(self, carrier: Carrier, budget_bytes: int, *, name: str, ttl_s: float) -> None:
        self.carrier: Carrier = carrier
        self.budget_bytes: int = budget_bytes
        self.name: str = name
        self.ttl_s: float = ttl_s
        self.granted: int = 0
        self.refused: int = 0
        self.lost: int = 0
        self.known_nodes: int = 1
        self.level: Callable[[], Level] = lambda: Level.NORMAL
        self._interval_s = min(_INTERVAL_S, ttl_s / 3)
        self._reset()
        register_object_after_fork(self, Membership._renew_after_fork)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._joining = threading.Lock()
        self._thread: _CarrierThread | None = None
        self._id = ""
        self._held: dict[str, LeaseState] = {}
        self._is_connected = False
        self._figures: PoolFigures | None = None

    def close(self) -> None:
        """Leave the pool: what is leased is given back. A second call does nothing."""
        with self._lock:
            thread, self._thread = self._thread, None
            for state in self._held.values():
                state.is_given_back = True
            self._held.clear()
        if thread is not None:
            node = self._id
            with contextlib.suppress(CarrierError, TimeoutError):
                thread.call(lambda: self.carrier.leave(node)).result(ANSWER_S)
            thread.stop(self.carrier.close)
            thread.wait(ANSWER_S)  # so that nothing of it runs any more

    def call(self, function: Callable[[], T]) -> T:
        """Call something of the carrier in its thread, and return its result.

        Raises:
            CarrierError: when it does not answer.
        """
        try:
            return self._running_thread().call(function).result(ANSWER_S)
        except TimeoutError as error:
            raise CarrierError("the carrier does not answer") from error

    @property
    def has_joined(self) -> bool:
        """Whether this process has joined; not before `open`, and not in a forked child."""
        return self._thread is not None

    def node_id(self) -> str:
        """Join where that has not happened, and return the id of this process in the pool."""
        self._running_thread()
        return self._id

    def ask(self, request: LeaseRequest) -> "Future[str | None]":
        """Ask for a lease; the result is its fence, or None where it has to wait.

        While the carrier is away the answer comes from here, at once; the thread finds out when it is back.
        """
        thread = self._running_thread()
        if self._is_connected:
            return thread.call(lambda: self._ask_in_thread(request))
        future: Future[str | None] = Future()
        future.set_result(self._grant_locally(request))
        return future

    def take(self, state: LeaseState, fence: str, asked_at: float) -> None:
        """Hold what was granted to a question that was asked at that time."""
        state.fence = fence
        state.is_local = fence.startswith(_LOCAL)
        state.valid_until = float("inf") if state.is_local else asked_at + self.ttl_s
        with self._lock:
            self._held[state.id] = state
            self.granted += 1

    def give_back(self, state: LeaseState) -> None:
        """Give a lease back, without waiting for it; only this one, since a successor has another id."""
        if state.process != os.getpid() or state.is_given_back:
            return
        was_lost = state.is_lost
        state.is_given_back = True
        with self._lock:
            self._held.pop(state.id, None)
            thread = self._thread
        if thread is not None:
            thread.call(lambda: self._release(state, was_lost=was_lost))

    def withdraw(self, lease_id: str, *, is_refused: bool) -> None:
        """Leave the queue, or give back what was granted unnoticed, without waiting for it."""
        with self._lock:
            self.refused += is_refused
            thread = self._thread
        if thread is not None:
            thread.call(lambda: self.carrier.withdraw(lease_id))

    def why_not(self) -> str:
        """Return why a lease is not granted, as far as that was known a moment ago."""
        figures = self._figures
        if not self._is_connected or figures is None:
            return "the carrier does not answer, and this process holds its share already"
        used, usable = format_size(figures.used_bytes), format_size(figures.usable_bytes)
        return f"the pool uses {used} of {usable}, and {figures.waiting} requests wait"

    def held_bytes(self) -> int:
        """Return the sum of the leases that this process holds."""
        with self._lock:
            return sum(state.size_bytes for state in self._held.values())

    def _running_thread(self) -> "_CarrierThread":
        thread = self._thread
        if thread is not None:
            return thread
        with self._joining:
            if self._thread is None:
                self._thread = self._join_pool()
            return self._thread

    def _join_pool(self) -> "_CarrierThread":
        self._id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        thread = _CarrierThread(self._tick, self._interval_s)
        try:
            thread.call(self._open).result(ANSWER_S)
        except TimeoutError as error:
            thread.stop(self.carrier.close)
            raise CarrierError("the carrier does not answer") from error
        except BaseException:
            thread.stop(self.carrier.close)
            raise
        return thread

    def _open(self) -> None:
        self.carrier.open(self.budget_bytes)
        self._tick()

    def _ask_in_thread(self, request: LeaseRequest) -> str | None:
        try:
            fence = self.carrier.acquire(request)
        except CarrierError as error:
            self._note_connection(error)
            return self._grant_locally(request)
        self._note_connection(None)
        return fence

    def _grant_locally(self, request: LeaseRequest) -> str | None:
        share = usable_bytes(self.budget_bytes, is_critical=False) // self.known_nodes
        return f"{_LOCAL}{request.id}" if self.held_bytes() + request.size_bytes <= share else None

    def _release(self, state: LeaseState, *, was_lost: bool) -> None:
        with contextlib.suppress(CarrierError):
            if not self.carrier.release(state.id) and not was_lost and not state.is_local:
                self._count_lost(state)

    def _tick(self) -> None:
        """Tell the readings, renew the leases, and look for those that have expired; in the carrier's thread."""
        began = time.monotonic()
        with self._lock:
            held = tuple(self._held.values())
        # One that has expired here is not told: the carrier would have to take it where it knows nothing of it.
        valid = [state for state in held if not state.is_lost]
        try:
            told = tuple(HeldLease(state.id, state.size_bytes, state.is_local) for state in valid)
            lost = self.carrier.publish(self._describe(), told)
            self._figures = figures = self.carrier.figures()
            self.known_nodes = max(figures.nodes, 1)
        except CarrierError as error:
            self._note_connection(error)
        else:
            self._note_connection(None)
            for state in valid:
                if state.id in lost:
                    state.valid_until = 0.0
                else:
                    state.is_local = False
                    state.valid_until = began + self.ttl_s
        for state in held:
            if state.is_lost:
                with self._lock:
                    is_held = self._held.pop(state.id, None) is not None
                if is_held:
                    self._count_lost(state)

    def _describe(self) -> Node:
        reading = take_reading()
        return Node(
            id=self._id,
            name=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            used_bytes=reading.used_bytes,
            limit_bytes=reading.limit_bytes,
            headroom_bytes=headroom().value_bytes,
            level=self.level(),
            leased_bytes=self.held_bytes(),
            interval_s=self._interval_s,
        )

    def _note_connection(self, error: CarrierError | None) -> None:
        was_connected, self._is_connected = self._is_connected, error is None
        if error is not None and was_connected:
            _log.warning("the carrier of the cluster does not answer: %s; this process keeps to its share", error)
        elif error is None and not was_connected:
            _log.info("the carrier of the cluster answers")

    def _count_lost(self, state: LeaseState) -> None:
        with self._lock:
            self.lost += 1
        _log.warning("a lease of %s has expired before it was given back", format_size(state.size_bytes))
        try:
            state.on_lost()
        except Exception:
            _log.exception("on_lease_lost has failed")

    def _renew_after_fork(self) -> None:
        self.carrier.abandon()
        self._reset()


class _CarrierThread:
    """Runs one call of the carrier after the other, and `tick` at an interval."""

    def __init__(self, tick: Callable[[], None], interval_s: float) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._tick = tick
        self._interval_s = interval_s
        self._thread = OwnThread(target=self._run, name="memtools-cluster", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Call a function in the thread; its result comes in the future."""
        future: Future[T] = Future()

        def run() -> bool:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            return True

        self._jobs.put(run)
        return future

    def stop(self, function: Callable[[], object]) -> None:
        """Call a last function and end the thread; see `wait`."""

        def run() -> bool:
            with contextlib.suppress(Exception):
                function()
            return False

        self._jobs.put(run)

    def wait(self, timeout_s: float) -> None:
        """Wait until the thread has ended, for so many seconds at most; not where it is this one."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        next_tick = time.monotonic() + self._interval_s
        goes_on = True
        while goes_on:
            left_s = next_tick - time.monotonic()
            if left_s <= 0:  # also while there is always something to do: the leases are renewed here
                try:
                    self._tick()
                except Exception:
                    _log.exception("a reading of the cluster has failed")
                next_tick = time.monotonic() + self._interval_s
                continue
            try:
                goes_on = self._jobs.get(timeout=left_s)()
            except queue.Empty:
                continue
