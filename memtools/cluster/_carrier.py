"""What a cluster asks of its carrier: the place where its processes keep what they share.

A file of its own because every carrier implements it, and the cluster knows nothing else of them.
"""

import re
from typing import Protocol

from memtools._records import record
from memtools.errors import MemtoolsError
from memtools.readings import Level

RESERVE = 0.05  # of the budget, which is not leased
RESERVE_CRITICAL = 0.20  # while a process of the pool is critical


class CarrierError(MemtoolsError, OSError):
    """The carrier did not answer in time, or answered with an error; what was asked may have happened or not."""


@record
class Node:
    """One process of a pool, as it has last told of itself.

    Attributes:
        id: unique in the pool.
        name: what the process calls itself.
        host: the name of its machine.
        pid: its process id there.
        used_bytes: its memory in use.
        limit_bytes: its limit; None where there is none.
        headroom_bytes: how much more it can take before the nearest limit; None where that is not known.
        level: how short its memory is.
        leased_bytes: the sum of its leases.
        age_s: seconds since it has told.
        interval_s: seconds between two times.
    """

    id: str
    name: str
    host: str
    pid: int
    used_bytes: int
    limit_bytes: int | None
    headroom_bytes: int | None
    level: Level
    leased_bytes: int = 0
    age_s: float = 0.0
    interval_s: float = 2.0

    @property
    def is_stale(self) -> bool:
        """Whether it has not told anything for three intervals."""
        return self.age_s > 3 * self.interval_s

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {
            "id": self.id,
            "name": self.name,
            "host": self.host,
            "pid": self.pid,
            "used_bytes": self.used_bytes,
            "limit_bytes": self.limit_bytes,
            "headroom_bytes": self.headroom_bytes,
            "level": self.level.name.lower(),
            "leased_bytes": self.leased_bytes,
            "age_s": round(self.age_s, 1),
            "is_stale": self.is_stale,
        }


@record
class LeaseRequest:
    """A lease that is asked for.

    Attributes:
        id: chosen by who asks: the same request can be asked again after a call that has failed.
        node: the id of the process that asks.
        size_bytes: how much.
        waits: whether it takes a place in the queue where it is not granted.
    """

    id: str
    node: str
    size_bytes: int
    waits: bool


@record
class HeldLease:
    """A lease that a process holds, as it tells the carrier.

    Attributes:
        id: that of the request.
        size_bytes: how much.
        is_local: granted by the process itself while the carrier was away: the carrier has to take it as it is.
    """

    id: str
    size_bytes: int
    is_local: bool = False


@record
class PoolFigures:
    """The figures of a pool at one moment.

    Attributes:
        budget_bytes: what the pool may use.
        usable_bytes: the budget without the reserve.
        used_bytes: over all processes, the larger of what is leased to it and what it uses.
        leased_bytes: the sum of all leases.
        leases: how many there are.
        waiting: how many requests are in the queue.
        nodes: how many processes there are.
    """

    budget_bytes: int
    usable_bytes: int
    used_bytes: int
    leased_bytes: int
    leases: int
    waiting: int
    nodes: int


class Carrier(Protocol):
    """Keeps readings and leases of one pool.

    One thread calls it. Every call is atomic and ends by itself within `timeout_s`, or raises `CarrierError`.
    Leases expire `ttl_s` after they were granted or last told of, by the carrier's clock.
    """

    def open(self, budget_bytes: int) -> None:
        """Join the pool, and make it where there is none, or where no process is in it.

        Raises:
            ConfigError: when the pool has another budget, or the carrier cannot hold one.
            CarrierError: when it does not answer.
        """
        ...

    def publish(self, node: Node, leases: tuple[HeldLease, ...]) -> tuple[str, ...]:
        """Store what a process tells of itself, and renew its leases; return the ids of those that have expired."""
        ...

    def acquire(self, request: LeaseRequest) -> str | None:
        """Grant a lease, and return its fence, or None where it has to wait.

        Requests are served in the order in which they have come: one that does not fit holds up those behind it, so
        that a large one is not starved. A request in the queue must be asked again within two seconds, or it loses its
        place. The same id is granted once.
        """
        ...

    def withdraw(self, lease_id: str) -> None:
        """Take a request out of the queue, or give its lease back where it was granted."""
        ...

    def release(self, lease_id: str) -> bool:
        """Give a lease back; return False where it had expired."""
        ...

    def nodes(self) -> tuple[Node, ...]:
        """Return the processes of the pool; those that have told nothing for the time of a lease are left out.

        Also without `open`.
        """
        ...

    def figures(self) -> PoolFigures:
        """Return the figures of the pool; a budget of 0 where there is no such pool. Also without `open`."""
        ...

    def leave(self, node_id: str) -> None:
        """Remove a process, its leases and its requests."""
        ...

    def abandon(self) -> None:
        """Forget the connection without closing it: this process is a fork, and it belongs to the parent."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def usable_bytes(budget_bytes: int, *, is_critical: bool) -> int:
    """Return the budget without the reserve, which is larger while a process is critical."""
    return int(budget_bytes * (1 - (RESERVE_CRITICAL if is_critical else RESERVE)))


def settle_s(ttl_s: float) -> float:
    """Return how long a pool that was made anew waits for what its processes hold, in seconds.

    A little longer than the time between two readings of a process: two seconds, or a third of the time of a lease.
    """
    return min(2.5, ttl_s / 2)


def without_password(url: str) -> str:
    """Return a URL without user and password, also where one of them has been written without its quoting."""
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", re.sub(r"^([^:]*:/*).*@", r"\1***@", url, flags=re.DOTALL))
