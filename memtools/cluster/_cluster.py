"""A process's membership of a pool: it tells its readings, takes leases, and sees the others."""

import asyncio
import contextlib
import logging
import os
import queue
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from memtools._forks import register_object_after_fork
from memtools._records import record
from memtools._text import printable
from memtools._threads import OwnThread
from memtools.cluster._carrier import Carrier, CarrierError, HeldLease, LeaseRequest, Node, PoolFigures, usable_bytes
from memtools.cluster._routing import Router
from memtools.cluster._sqlite import SqliteCarrier
from memtools.errors import ConfigError, MemtoolsError, MissingExtraError
from memtools.readings import Level, headroom, take_reading
from memtools.units import format_size, parse_seconds, parse_size

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

_log = logging.getLogger("memtools.cluster")

_TTL_S: Final = 15.0
_INTERVAL_S: Final = 2.0
_CALL_S: Final = 1.0  # of the carrier
_GIVE_UP_S: Final = 0.5  # beyond which a caller waits no longer for a call that should have ended
_SHORTEST_WAIT_S: Final = 0.005
_LONGEST_WAIT_S: Final = 0.1
_MAX_NAME: Final = 100
_SCHEMES: Final = "sqlite:///PATH or redis://HOST:PORT/NUMBER"


class LeaseTimeout(MemtoolsError, TimeoutError):
    """A lease was not granted in time.

    Attributes:
        size_bytes: what was asked for.
        timeout_s: how long it was waited for, in seconds.
        reason: why it was not granted, as far as that is known.
    """

    def __init__(self, size_bytes: int, timeout_s: float, reason: str) -> None:
        super().__init__(size_bytes, timeout_s, reason)
        self.size_bytes = size_bytes
        self.timeout_s = timeout_s
        self.reason = reason

    def __str__(self) -> str:
        return f"no lease of {format_size(self.size_bytes)} within {self.timeout_s:g} s: {self.reason}"


class LeaseLost(MemtoolsError, RuntimeError):
    """A lease has expired before it was given back: others may have got its bytes meanwhile.

    Attributes:
        size_bytes: what was leased.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes

    def __str__(self) -> str:
        return (
            f"the lease of {format_size(self.size_bytes)} has expired: this process was stopped, or cut off, too long"
        )


@record
class ClusterStatistics:
    """What a process knows of its pool, and what it has done there.

    Attributes:
        budget_bytes: what the pool may use.
        usable_bytes: the budget without the reserve.
        used_bytes: over all processes, the larger of what is leased to it and what it uses; None while the carrier is
            away.
        leased_bytes: the sum of all leases of the pool; None while the carrier is away.
        waiting: how many requests of the pool wait; None while the carrier is away.
        held_bytes: the leases of this process.
        granted: how many leases it was granted.
        refused: how many it was not granted in time.
        lost: how many have expired while it held them.
        is_connected: whether the carrier has answered the last call.
    """

    budget_bytes: int
    usable_bytes: int
    used_bytes: int | None
    leased_bytes: int | None
    waiting: int | None
    held_bytes: int
    granted: int
    refused: int
    lost: int
    is_connected: bool


def join(
    url: str,
    *,
    budget: int | str,
    pool: str = "default",
    name: str = "",
    ttl: float = _TTL_S,
    on_lease_lost: "Callable[[Lease], object] | None" = None,
) -> "Cluster":
    """Join the processes that share a budget.

    ```python
    import tempfile

    from memtools.cluster import join

    with join(f"sqlite:///{tempfile.mkdtemp()}/memory.db", budget="8 GiB") as cluster:
        with cluster.lease("500 MiB", timeout=30):
            ...
        print(cluster.statistics())
    ```

    Nothing is asked of the carrier before the block is entered, or `open()` is called. In a forked child the cluster
    joins anew, as a process of its own, when it is first used there.

    Args:
        url: `sqlite:///PATH` (an absolute path has four slashes) for the processes of one machine. The file is made
            where there is none.
        budget: what the pool may use, the same for all of its processes; a size.
        pool: the name of the pool.
        name: what this process is called in the list of nodes; by default the program's name.
        ttl: seconds for which a lease is valid without being renewed. Each process renews its leases, and tells its
            readings, every two seconds, or three times in that time.
        on_lease_lost: called, in a thread, with each lease that has expired while it was held.

    Raises:
        ConfigError: for an address, a budget or a time that is none.
    """
    ttl_s = parse_seconds(ttl, name="ttl", above_zero=True)
    budget_bytes = parse_size(budget, name="budget")
    if budget_bytes <= 0:
        raise ConfigError("budget", budget, "a size above zero")
    if not isinstance(pool, str) or not pool or not pool.isprintable():
        raise ConfigError("pool", pool, "a name")
    if on_lease_lost is not None and not callable(on_lease_lost):
        raise ConfigError("on_lease_lost", on_lease_lost, "a callable that takes the lease, or None")
    carrier = _make_carrier(url, pool, ttl_s)
    return Cluster(carrier, budget_bytes, name=name, ttl_s=ttl_s, on_lease_lost=on_lease_lost)


def _make_carrier(url: object, pool: str, ttl_s: float) -> Carrier:
    if not isinstance(url, str):
        raise ConfigError("url", url, _SCHEMES)
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest.startswith("///") and len(rest) > len("///"):
        return SqliteCarrier(rest[3:], pool, ttl_s=ttl_s, timeout_s=_CALL_S)
    raise ConfigError("url", url, _SCHEMES)


class Lease:
    """A share of the budget of a pool, for a `with` or `async with` block; made by `Cluster.lease`.

    Attributes:
        size_bytes: how much of the budget.
        fence: a text that no other lease of the pool has had, with a number that rises; empty before it is granted.
        is_local: whether this process granted it itself, since the carrier was away.
    """

    def __init__(self, cluster: "Cluster", size_bytes: int, timeout_s: float) -> None:
        self.size_bytes = size_bytes
        self.fence = ""
        self.is_local = False
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._id = uuid.uuid4().hex
        self._process = 0
        self._valid_until = 0.0
        self._is_given_back = False

    @property
    def is_lost(self) -> bool:
        """Whether it has expired before it was given back."""
        return bool(self.fence) and not self._is_given_back and time.monotonic() >= self._valid_until

    def check(self) -> None:
        """Raise if it is lost, as before something that nobody else must do at the same time.

        Raises:
            LeaseLost: when it has expired.
        """
        if self.is_lost:
            raise LeaseLost(self.size_bytes)

    def __enter__(self) -> Self:
        attempt = self._begin()
        try:
            while not attempt.is_granted(attempt.ask().result(attempt.patience_s())):
                time.sleep(attempt.pause_s())
        except BaseException as error:
            attempt.withdraw(error)
            raise
        return self

    async def __aenter__(self) -> Self:
        attempt = self._begin()
        try:
            while not attempt.is_granted(
                await asyncio.wait_for(asyncio.wrap_future(attempt.ask()), attempt.patience_s())
            ):
                await asyncio.sleep(attempt.pause_s())
        except BaseException as error:
            attempt.withdraw(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._give_back()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._give_back()

    def _begin(self) -> "_Attempt":
        if self.fence or self._process:
            raise ConfigError("lease", self, "a lease for each block: call cluster.lease() again")
        self._process = os.getpid()
        return _Attempt(self._cluster, self, self._timeout_s)

    def _give_back(self) -> None:
        if self._process == os.getpid() and not self._is_given_back:
            was_lost = self.is_lost
            self._is_given_back = True
            self._cluster._give_back(self, was_lost=was_lost)

    def __repr__(self) -> str:
        state = "not granted" if not self.fence else "given back" if self._is_given_back else "held"
        return f"<Lease of {format_size(self.size_bytes)}, {'lost' if self.is_lost else state}>"


class _Attempt:
    """One request for a lease, from the first question to its answer or its end."""

    def __init__(self, cluster: "Cluster", lease: Lease, timeout_s: float) -> None:
        self._cluster = cluster
        self._lease = lease
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._request = LeaseRequest(lease._id, cluster._node_id(), lease.size_bytes, timeout_s > 0)
        self._pause_s = _SHORTEST_WAIT_S
        self._asked_at = 0.0

    def ask(self) -> "Future[str | None]":
        """Ask the carrier; the result is the fence, or None."""
        self._asked_at = time.monotonic()
        return self._cluster._ask(self._request)

    def patience_s(self) -> float:
        """Return how long to wait for the answer of the carrier, in seconds."""
        return _CALL_S + _GIVE_UP_S

    def is_granted(self, fence: str | None) -> bool:
        """Take the answer.

        Raises:
            LeaseTimeout: when there is no time left to ask again.
        """
        if fence is not None:
            self._cluster._take(self._lease, fence, self._asked_at)
            return True
        if time.monotonic() >= self._deadline:
            raise LeaseTimeout(self._lease.size_bytes, self._timeout_s, self._cluster._why_not())
        return False

    def pause_s(self) -> float:
        """Return how long to wait before the next question, in seconds; with jitter, and longer each time."""
        pause_s = self._pause_s
        self._pause_s = min(1.5 * pause_s, _LONGEST_WAIT_S)
        left_s = max(self._deadline - time.monotonic(), 0.001)
        return min(pause_s * random.uniform(0.5, 1.0), left_s)  # noqa: S311  # not a secret

    def withdraw(self, error: BaseException) -> None:
        """Leave the queue, or give back what was granted unnoticed."""
        self._cluster._withdraw(self._lease._id, is_refused=isinstance(error, LeaseTimeout))


class Cluster:
    """The membership of this process in a pool; made by `join`, for a `with` or `async with` block.

    Threads and loops: any of them may use it at once. A thread of its own talks to the carrier: it renews the leases
    even while a loop is blocked. Where the carrier does not answer, what is running goes on; leases that need no more
    than this process's share (the budget over the processes last known) are granted here, and told to the carrier before
    anything else when it is back.
    """

    def __init__(
        self,
        carrier: Carrier,
        budget_bytes: int,
        *,
        name: str = "",
        ttl_s: float = _TTL_S,
        on_lease_lost: Callable[[Lease], object] | None = None,
    ) -> None:
        self._carrier = carrier
        self._budget_bytes = budget_bytes
        self._name = printable(name or _program_name(), _MAX_NAME)
        self._ttl_s = ttl_s
        self._interval_s = min(_INTERVAL_S, ttl_s / 3)
        self._on_lease_lost = on_lease_lost
        self._router = Router()
        self._is_wanted = False
        self._granted = self._refused = self._lost = 0
        self._known_nodes = 1
        self._reset()
        register_object_after_fork(self, Cluster._renew_after_fork)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._thread: _CarrierThread | None = None
        self._id = ""
        self._held: dict[str, Lease] = {}
        self._is_connected = False
        self._figures: PoolFigures | None = None

    def open(self) -> Self:
        """Join the pool, and begin to tell readings; a second call does nothing.

        Raises:
            ConfigError: when the pool has another budget.
            CarrierError: when the carrier does not answer.
        """
        self._call(self._carrier.figures)
        return self

    def close(self) -> None:
        """Leave the pool: what is leased is given back. A second call does nothing."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._is_wanted = False
            self._held.clear()
        if thread is not None:
            node = self._id
            with contextlib.suppress(CarrierError, TimeoutError):
                thread.call(lambda: self._carrier.leave(node)).result(_CALL_S + _GIVE_UP_S)
            thread.stop(self._carrier.close)

    def lease(self, size: int | str, *, timeout: float = 30.0) -> Lease:
        """Return a lease to enter: it waits until the pool has room for it, first come, first served.

        Args:
            size: how much; a size, at most the budget without its reserve of 5 %.
            timeout: seconds to wait; 0 to be granted at once or not at all.

        Raises:
            ConfigError: for a size that is none, or that is never granted.

        Entering raises `LeaseTimeout`.
        """
        size_bytes = parse_size(size, name="size")
        most = usable_bytes(self._budget_bytes, is_critical=False)
        if not 0 < size_bytes <= most:
            raise ConfigError("size", size, f"a size above zero, and at most {format_size(most)}")
        return Lease(self, size_bytes, parse_seconds(timeout, name="timeout"))

    def nodes(self) -> tuple[Node, ...]:
        """Return the processes of the pool, by name.

        Raises:
            CarrierError: when the carrier does not answer.
        """
        found = self._call(self._carrier.nodes)
        self._known_nodes = max(len(found), 1)
        return found

    def pick(self, needs: int | str) -> Node | None:
        """Return a process of the pool with room for so much, where work is to be sent; None where none has it.

        Args:
            needs: a size.

        Raises:
            ConfigError: for a size that is none.
            CarrierError: when the carrier does not answer.
        """
        return self._router.pick(self.nodes(), parse_size(needs, name="needs"))

    def statistics(self) -> ClusterStatistics:
        """Return what is known of the pool now."""
        figures: PoolFigures | None = None
        with contextlib.suppress(CarrierError):
            figures = self._call(self._carrier.figures)
        with self._lock:
            held = sum(lease.size_bytes for lease in self._held.values())
            return ClusterStatistics(
                budget_bytes=self._budget_bytes,
                usable_bytes=usable_bytes(self._budget_bytes, is_critical=False)
                if figures is None
                else figures.usable_bytes,
                used_bytes=None if figures is None else figures.used_bytes,
                leased_bytes=None if figures is None else figures.leased_bytes,
                waiting=None if figures is None else figures.waiting,
                held_bytes=held,
                granted=self._granted,
                refused=self._refused,
                lost=self._lost,
                is_connected=figures is not None,
            )

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().run_in_executor(None, self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self.close))

    def _call(self, function: Callable[[], T]) -> T:
        try:
            return self._running_thread().call(function).result(_CALL_S + _GIVE_UP_S)
        except TimeoutError as error:
            raise CarrierError("the carrier does not answer") from error

    def _running_thread(self) -> "_CarrierThread":
        with self._lock:
            if self._thread is not None:
                return self._thread
            self._is_wanted = True
            self._id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._thread = thread = _CarrierThread(self._tick, self._interval_s)
        try:
            thread.call(self._join_pool).result(2 * _CALL_S + _GIVE_UP_S)
        except BaseException as error:
            with self._lock:
                self._thread = None
            thread.stop(self._carrier.close)
            if isinstance(error, TimeoutError) and not isinstance(error, CarrierError):
                raise CarrierError("the carrier does not answer") from error
            raise
        return thread

    def _join_pool(self) -> None:
        self._carrier.open(self._budget_bytes)
        self._tick()

    def _node_id(self) -> str:
        self._running_thread()
        return self._id

    def _ask(self, request: LeaseRequest) -> "Future[str | None]":
        return self._running_thread().call(lambda: self._ask_in_thread(request))

    def _ask_in_thread(self, request: LeaseRequest) -> str | None:
        try:
            fence = self._carrier.acquire(request)
        except CarrierError as error:
            self._note_connection(error)
            return self._grant_locally(request)
        self._note_connection(None)
        return fence

    def _grant_locally(self, request: LeaseRequest) -> str | None:
        share = usable_bytes(self._budget_bytes, is_critical=False) // self._known_nodes
        with self._lock:
            held = sum(lease.size_bytes for lease in self._held.values())
        return f"local:{request.id}" if held + request.size_bytes <= share else None

    def _take(self, lease: Lease, fence: str, asked_at: float) -> None:
        lease.fence = fence
        lease.is_local = fence.startswith("local:")
        lease._valid_until = float("inf") if lease.is_local else asked_at + self._ttl_s
        with self._lock:
            self._held[lease._id] = lease
            self._granted += 1

    def _give_back(self, lease: Lease, *, was_lost: bool) -> None:
        with self._lock:
            self._held.pop(lease._id, None)
            thread = self._thread
        if thread is not None:
            thread.call(lambda: self._release(lease, was_lost=was_lost))

    def _release(self, lease: Lease, *, was_lost: bool) -> None:
        with contextlib.suppress(CarrierError):
            # Only this lease: a successor has another id.
            if not self._carrier.release(lease._id) and not was_lost and not lease.is_local:
                self._count_lost(lease)

    def _withdraw(self, lease_id: str, *, is_refused: bool) -> None:
        with self._lock:
            self._refused += is_refused
            thread = self._thread
        if thread is not None:
            thread.call(lambda: self._carrier.withdraw(lease_id))

    def _why_not(self) -> str:
        figures = self._figures
        if not self._is_connected or figures is None:
            return "the carrier does not answer, and this process holds its share already"
        used, usable = format_size(figures.used_bytes), format_size(figures.usable_bytes)
        return f"the pool uses {used} of {usable}, and {figures.waiting} requests wait"

    def _tick(self) -> None:
        """Tell the readings, renew the leases, and look for those that have expired; in the carrier's thread."""
        began = time.monotonic()
        with self._lock:
            held = tuple(self._held.values())
        lost: tuple[str, ...] = ()
        try:
            lost = self._carrier.publish(
                self._describe(), tuple(HeldLease(lease._id, lease.size_bytes, lease.is_local) for lease in held)
            )
            self._figures = self._carrier.figures()
        except CarrierError as error:
            self._note_connection(error)
        else:
            self._note_connection(None)
            for lease in held:
                if lease._id not in lost:
                    lease.is_local = False
                    lease._valid_until = began + self._ttl_s
        for lease in held:
            if lease._id in lost:
                lease._valid_until = 0.0
            if lease.is_lost:
                with self._lock:
                    is_held = self._held.pop(lease._id, None) is not None
                if is_held:
                    self._count_lost(lease)

    def _describe(self) -> Node:
        reading = take_reading()
        with self._lock:
            leased = sum(lease.size_bytes for lease in self._held.values())
        return Node(
            id=self._id,
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            used_bytes=reading.used_bytes,
            limit_bytes=reading.limit_bytes,
            headroom_bytes=headroom().value_bytes,
            level=self.level(),
            leased_bytes=leased,
            interval_s=self._interval_s,
        )

    def level(self) -> Level:
        """Return the level that this process tells the others."""
        return Level.NORMAL

    def _note_connection(self, error: CarrierError | None) -> None:
        was_connected, self._is_connected = self._is_connected, error is None
        if error is not None and was_connected:
            _log.warning("the carrier of the cluster does not answer: %s; this process keeps to its share", error)
        elif error is None and not was_connected:
            _log.info("the carrier of the cluster answers")

    def _count_lost(self, lease: Lease) -> None:
        with self._lock:
            self._lost += 1
        _log.warning("a lease of %s has expired before it was given back", format_size(lease.size_bytes))
        if self._on_lease_lost is not None:
            try:
                self._on_lease_lost(lease)
            except Exception:
                _log.exception("on_lease_lost has failed")

    def _renew_after_fork(self) -> None:
        self._carrier.abandon()
        self._reset()

    def __repr__(self) -> str:
        return f"<Cluster {self._name!r}: budget {format_size(self._budget_bytes)}, {len(self._held)} leases held>"


class _CarrierThread:
    """Runs one call of the carrier after the other, and `tick` at an interval."""

    def __init__(self, tick: Callable[[], None], interval_s: float) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._tick = tick
        self._interval_s = interval_s
        OwnThread(target=self._run, name="memtools-cluster", daemon=True).start()

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
        """Call a last function and end the thread, without waiting for it."""

        def run() -> bool:
            with contextlib.suppress(Exception):
                function()
            return False

        self._jobs.put(run)

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


def _program_name() -> str:
    import sys

    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
