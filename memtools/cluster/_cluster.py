"""One budget for many processes: what a program uses of it."""

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote_plus

from memtools._records import record
from memtools._text import printable
from memtools._threads import call_in_own_thread
from memtools.cluster._carrier import (
    Carrier,
    CarrierError,
    LeaseRequest,
    Node,
    PoolFigures,
    usable_bytes,
    without_password,
)
from memtools.cluster._membership import ANSWER_S, CALL_S, LeaseState, Membership
from memtools.cluster._routing import Router
from memtools.cluster._sqlite import SqliteCarrier
from memtools.errors import ConfigError, MemtoolsError
from memtools.readings import Level, effective_limit
from memtools.units import format_size, parse_seconds, parse_size

if TYPE_CHECKING:
    from types import TracebackType

_TTL_S: Final = 15.0
_SHORTEST_WAIT_S: Final = 0.005
_LONGEST_WAIT_S: Final = 0.1
_MAX_NAME: Final = 100
_ROUTED_S: Final = 0.5  # for which `pick` takes what the processes have told as it was; they tell every two seconds
_SCHEMES: Final = "sqlite:///PATH, or redis://HOST:PORT/NUMBER"
_SHARE: Final = "80%"  # of the effective limit, where no budget is given


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
    budget: int | str | None = None,
    pool: str | None = None,
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
        url: `sqlite:///PATH` (an absolute path has four slashes) for the processes of one machine, whose file is made
            where there is none; `redis://HOST:PORT/NUMBER`, `rediss://` or `unix://` for those of several machines,
            with `pip install 'memtools[redis]'`. It may name the pool and the budget: `?pool=NAME&budget=SIZE`.
        budget: what the pool may use, the same for all of its processes; a size, or with sqlite a share of the
            effective limit such as `"80%"`. By default what the URL says; else with sqlite 80 %.
        pool: the name of the pool; by default what the URL says, else `"default"`.
        name: what this process is called in the list of nodes; by default the program's name.
        ttl: seconds for which a lease is valid without being renewed. Each process renews its leases, and tells its
            readings, every two seconds, or three times in that time.
        on_lease_lost: called, in a thread, with each lease that has expired while it was held.

    Raises:
        ConfigError: for an address, a budget or a time that is none.
    """
    ttl_s = parse_seconds(ttl, name="ttl", above_zero=True)
    url, given = _split(url)
    pool = given.get("pool", "default") if pool is None else pool
    budget_bytes = _parse_budget(given.get("budget") if budget is None else budget, is_shared=url.startswith("sqlite:"))
    if not (pool and pool.isprintable()):
        raise ConfigError("pool", pool, "a name")
    if on_lease_lost is not None and not callable(on_lease_lost):
        raise ConfigError("on_lease_lost", on_lease_lost, "a callable that takes the lease, or None")
    carrier = _make_carrier(url, pool, ttl_s)
    member = Membership(carrier, budget_bytes, name=printable(name or _program_name(), _MAX_NAME), ttl_s=ttl_s)
    return Cluster(member, pool, on_lease_lost)


def look(url: str, *, pool: str | None = None) -> tuple[PoolFigures, tuple[Node, ...]]:
    """Return the figures of a pool and its processes, without joining it; for a command, since it blocks.

    Raises:
        ConfigError: for an address that is none.
        CarrierError: when the carrier does not answer, or has no such pool.
    """
    url, given = _split(url)
    pool = given.get("pool", "default") if pool is None else pool
    carrier = _make_carrier(url, pool, _TTL_S, is_observer=True)
    try:
        figures = carrier.figures()
        if not figures.budget_bytes:
            raise CarrierError(f"no process has ever joined a pool {pool!r} there")
        return figures, carrier.nodes()
    finally:
        carrier.close()


def _split(url: object) -> tuple[str, dict[str, str]]:
    """Return a URL without `pool` and `budget` in its query, and those two as far as they are there."""
    if not isinstance(url, str):
        raise ConfigError("url", url, _SCHEMES)
    place, _, query = url.partition("?")
    if place.partition(":")[0] not in ("sqlite", "redis", "rediss", "unix"):
        raise ConfigError("url", without_password(url), _SCHEMES)
    given: dict[str, str] = {}
    others: list[str] = []
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name in ("pool", "budget"):
            given[name] = unquote_plus(value)  # a bare `80%` stays as it is
        else:
            others.append(part)
    if others and place.startswith("sqlite:"):
        raise ConfigError("url", url, "sqlite:///PATH, with ?pool=NAME&budget=SIZE and nothing else in its query")
    return f"{place}?{'&'.join(others)}" if others else place, given


def _parse_budget(budget: int | str | None, *, is_shared: bool) -> int:
    """Return the budget; a share only where all processes of the pool share one limit."""
    if not is_shared and (budget is None or str(budget).rstrip().endswith("%")):
        raise ConfigError(
            "budget", budget, "a size, also as ?budget=SIZE in the URL: each process of a pool on Redis has a limit"
        )
    budget = _SHARE if budget is None else budget
    percent_of = (lambda: effective_limit().value_bytes) if is_shared else None
    budget_bytes = parse_size(budget, name="budget", percent_of=percent_of)
    if budget_bytes <= 0:
        raise ConfigError("budget", budget, "a size above zero")
    return budget_bytes


def _make_carrier(url: str, pool: str, ttl_s: float, *, is_observer: bool = False) -> Carrier:
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest.startswith("///") and len(rest) > len("///"):
        return SqliteCarrier(rest[3:], pool, ttl_s=ttl_s, timeout_s=CALL_S, is_observer=is_observer)
    if scheme != "sqlite" and rest.startswith("//"):
        from memtools.cluster.redis import RedisCarrier  # an optional library

        return RedisCarrier(url, pool, ttl_s=ttl_s, timeout_s=CALL_S)
    raise ConfigError("url", without_password(url), _SCHEMES)


class Lease:
    """A share of the budget of a pool, for a `with` or `async with` block; made by `Cluster.lease`."""

    def __init__(
        self, membership: Membership, size_bytes: int, timeout_s: float, on_lost: "Callable[[Lease], object] | None"
    ) -> None:
        self._membership = membership
        self._timeout_s = timeout_s
        self._state = LeaseState(size_bytes, lambda: None if on_lost is None else on_lost(self))

    @property
    def size_bytes(self) -> int:
        """How much of the budget."""
        return self._state.size_bytes

    @property
    def fence(self) -> str:
        """A text that no other lease of the pool has had, ending with a rising number; empty before it is granted."""
        return self._state.fence

    @property
    def is_local(self) -> bool:
        """Whether this process has granted it itself, since the carrier was away."""
        return self._state.is_local

    @property
    def is_lost(self) -> bool:
        """Whether it has expired before it was given back."""
        return self._state.is_lost

    def check(self) -> None:
        """Raise if it is lost, as before something that no other process must do at the same time.

        Raises:
            LeaseLost: when it has expired.
        """
        if self.is_lost:
            raise LeaseLost(self.size_bytes)

    def __enter__(self) -> Self:
        attempt = self._begin()
        try:
            while not attempt.is_granted(attempt.ask().result(ANSWER_S)):
                time.sleep(attempt.pause_s())
        except BaseException as error:
            raise attempt.end(error) from error.__cause__
        return self

    async def __aenter__(self) -> Self:
        if not self._membership.has_joined:  # in a forked child, say: joining waits for the carrier
            await call_in_own_thread(self._membership.node_id, name="memtools-cluster-open")
        attempt = self._begin()
        try:
            while not attempt.is_granted(await attempt.answer()):  # noqa: ASYNC110  # another process gives it back
                await asyncio.sleep(attempt.pause_s())
        except BaseException as error:
            raise attempt.end(error) from error.__cause__
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._membership.give_back(self._state)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._membership.give_back(self._state)

    def _begin(self) -> "_Attempt":
        if self._state.process:
            raise ConfigError("lease", self, "a lease for each block: call cluster.lease() again")
        self._state.process = os.getpid()
        return _Attempt(self._membership, self._state, self._timeout_s)

    def __repr__(self) -> str:
        state = "not granted" if not self.fence else "given back" if self._state.is_given_back else "held"
        return f"<Lease of {format_size(self.size_bytes)}, {'lost' if self.is_lost else state}>"


class _Attempt:
    """One request for a lease, from the first question to its answer or its end."""

    def __init__(self, membership: Membership, state: LeaseState, timeout_s: float) -> None:
        self._membership = membership
        self._state = state
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._request = LeaseRequest(state.id, membership.node_id(), state.size_bytes, timeout_s > 0)
        self._pause_s = _SHORTEST_WAIT_S
        self._asked_at = 0.0

    def ask(self) -> "Future[str | None]":
        """Ask the carrier; the result is the fence, or None."""
        self._asked_at = time.monotonic()
        return self._membership.ask(self._request)

    async def answer(self) -> str | None:
        """Ask the carrier and return its answer, without blocking the loop.

        Raises:
            TimeoutError: when there is none in time.
        """
        # Not `wait_for`: on Python 3.11 it loses a cancellation that comes together with the answer.
        async with asyncio.timeout(ANSWER_S):
            return await asyncio.wrap_future(self.ask())

    def is_granted(self, fence: str | None) -> bool:
        """Take the answer.

        Raises:
            LeaseTimeout: when there is no time left to ask again.
        """
        if fence is not None:
            self._membership.take(self._state, fence, self._asked_at)
            return True
        if time.monotonic() >= self._deadline:
            raise LeaseTimeout(self._state.size_bytes, self._timeout_s, self._membership.why_not())
        return False

    def pause_s(self) -> float:
        """Return how long to wait before the next question, in seconds; with jitter, and longer each time."""
        pause_s = self._pause_s
        self._pause_s = min(1.5 * pause_s, _LONGEST_WAIT_S)
        left_s = max(self._deadline - time.monotonic(), 0.001)
        return min(pause_s * random.uniform(0.5, 1.0), left_s)

    def end(self, error: BaseException) -> BaseException:
        """Leave the queue, or give back what was granted unnoticed; return the error to raise."""
        if isinstance(error, TimeoutError) and not isinstance(error, MemtoolsError):
            error = LeaseTimeout(self._state.size_bytes, self._timeout_s, "the carrier does not answer")
        self._membership.withdraw(self._state.id, is_refused=isinstance(error, LeaseTimeout))
        return error


class Cluster:
    """The membership of this process in a pool; made by `join`, for a `with` or `async with` block.

    Threads and loops: any of them may use it at once. A thread of its own talks to the carrier: it renews the leases
    even while a loop is blocked. Where the carrier does not answer, what is running goes on; leases that need no more
    than this process's share (the budget over the processes last known) are granted here, and told to the carrier
    before anything else when it is back.
    """

    def __init__(
        self, membership: Membership, pool: str, on_lease_lost: Callable[[Lease], object] | None = None
    ) -> None:
        self._membership = membership
        self._pool = pool
        self._on_lease_lost = on_lease_lost
        self._router = Router()
        self._routed_at = -_ROUTED_S

    def open(self) -> Self:
        """Join the pool, and begin to tell readings; a second call does nothing.

        Raises:
            ConfigError: when the pool has another budget.
            CarrierError: when the carrier does not answer.
        """
        self._membership.node_id()
        return self

    def close(self) -> None:
        """Leave the pool: what is leased is given back. A second call does nothing."""
        self._membership.close()

    def lease(self, size: int | str, *, timeout: float = 30.0) -> Lease:
        """Return a lease to enter: it waits until the pool has room for it, first come, first served.

        Entering raises `LeaseTimeout` when it was not granted in time.

        Args:
            size: how much; a size, at most the budget without its reserve of 5 %.
            timeout: seconds to wait; 0 to be granted at once or not at all.

        Raises:
            ConfigError: for a size that is none, or that is never granted.
        """
        size_bytes = parse_size(size, name="size")
        most = usable_bytes(self._membership.budget_bytes, is_critical=False)
        if not 0 < size_bytes <= most:
            raise ConfigError("size", size, f"a size above zero, and at most {format_size(most)}")
        timeout_s = parse_seconds(timeout, name="timeout")
        return Lease(self._membership, size_bytes, timeout_s, self._on_lease_lost)

    def tell_level(self, level: Callable[[], Level]) -> None:
        """Tell the other processes how short memory is here; `MemoryMonitor(cluster=…)` does.

        While it is critical, less of the budget is leased, and `pick` sends nothing here.

        Args:
            level: returns it; called in the thread that tells the readings.
        """
        self._membership.level = level

    def nodes(self) -> tuple[Node, ...]:
        """Return the processes of the pool, by name.

        Raises:
            CarrierError: when the carrier does not answer.
        """
        return self._membership.call(self._membership.carrier.nodes)

    def pick(self, needs: int | str) -> Node | None:
        """Return a process of the pool with room for so much, where work is to be sent; None where none has it.

        Cost: a few microseconds, and twice a second a call of the carrier, which waits for its answer.

        Args:
            needs: a size.

        Raises:
            ConfigError: for a size that is none.
            CarrierError: when the carrier does not answer.
        """
        needs_bytes = parse_size(needs, name="needs")
        now = time.monotonic()
        if now - self._routed_at > _ROUTED_S:
            self._router.update(self.nodes())
            self._routed_at = now
        return self._router.pick(needs_bytes)

    def statistics(self) -> ClusterStatistics:
        """Return what is known of the pool now; where the carrier does not answer, what is known here."""
        member = self._membership
        figures: PoolFigures | None = None
        with contextlib.suppress(CarrierError):
            figures = member.call(member.carrier.figures)
        usable = usable_bytes(member.budget_bytes, is_critical=False) if figures is None else figures.usable_bytes
        return ClusterStatistics(
            budget_bytes=member.budget_bytes,
            usable_bytes=usable,
            used_bytes=None if figures is None else figures.used_bytes,
            leased_bytes=None if figures is None else figures.leased_bytes,
            waiting=None if figures is None else figures.waiting,
            held_bytes=member.held_bytes(),
            granted=member.granted,
            refused=member.refused,
            lost=member.lost,
            is_connected=figures is not None,
        )

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await call_in_own_thread(self.open, name="memtools-cluster-open")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        await asyncio.shield(call_in_own_thread(self.close, name="memtools-cluster-close"))

    def __repr__(self) -> str:
        member = self._membership
        held, budget = format_size(member.held_bytes()), format_size(member.budget_bytes)
        return f"<Cluster {self._pool!r}: {held} held of a budget of {budget}>"


def _program_name() -> str:
    path = sys.argv[0] if sys.argv and sys.argv[0] else "python"
    folder, file = os.path.split(path)
    return os.path.basename(folder) if folder and file == "__main__.py" else file  # `python -m uvicorn`: uvicorn
