"""The pool that the monitors of a process join in the background, by a URL.

It neither keeps a service from starting, nor does any of its work fail: where the carrier does not answer, a thread
tries again, and until it has joined nothing is leased. The monitors of a process are one member of the pool, or its
memory would count for each of them.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from memtools._forks import register_object_after_fork
from memtools._threads import OwnThread, call_in_own_thread
from memtools.cluster._carrier import CarrierError, without_password
from memtools.cluster._cluster import Cluster, Lease, join
from memtools.errors import ConfigError
from memtools.readings import Level

_log = logging.getLogger("memtools.cluster")

_RETRY_S: Final = 5.0
_NO_TIMEOUT_S: Final = 1e9  # an admission waits as long as it takes

_all: Final["WeakValueDictionary[str, SharedCluster]"] = WeakValueDictionary()

# Stays of a parent process: the end of a connection in a child could release what the parent holds.
_inherited: Final["list[_Stay]"] = []


class JoinedCluster:
    """A cluster that the program has joined by itself, for a monitor."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def is_joining(self) -> bool:
        """False: a lease joins by itself where that has not happened."""
        return False

    def attach(self, _key: int, level: Callable[[], Level], _name: str, /) -> None:
        """Tell the level of a monitor to the pool."""
        self._cluster.tell_level(level)

    def detach(self, _key: int, /) -> None:
        """Do nothing: the program leaves the pool by itself."""

    async def detach_async(self, _key: int, /) -> None:
        """Do nothing."""

    def lease(self, size_bytes: int) -> Lease | None:
        """Return a lease to enter."""
        return self._cluster.lease(size_bytes, timeout=_NO_TIMEOUT_S)


class SharedCluster:
    """The membership that the monitors of this process share: joined with the first of them, left with the last.

    In a forked child it begins anew, with the monitors that are attached there.

    Threads: any.

    Args:
        url: as for `join`, with pool and budget in its query.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._reset()
        register_object_after_fork(self, SharedCluster._renew_after_fork)

    def _renew_after_fork(self) -> None:
        if self._stay is not None:
            _inherited.append(self._stay)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._levels: dict[int, Callable[[], Level]] = {}
        self._stay: _Stay | None = None

    @property
    def is_joining(self) -> bool:
        """Whether the first attempt of this process to join has not ended: in some milliseconds, or three seconds."""
        stay = self._stay
        return stay is not None and not stay.has_tried and stay.is_of(os.getpid())

    def attach(self, key: int, level: Callable[[], Level], name: str, /) -> None:
        """Join with the first monitor of this process, without waiting for it; a second call does nothing.

        Args:
            key: of the monitor.
            level: returns how short memory is, by this monitor; the highest of all is told to the pool.
            name: what the process is called in the list of nodes; empty for the name of the program.
        """
        if self._pid != os.getpid():  # a fork by C code, which runs no handler of Python's
            self._renew_after_fork()
        with self._lock:
            self._levels[key] = level
            if self._stay is None:
                self._stay = _Stay(self._url, name, self._highest_level)
                self._stay.begin()

    def detach(self, key: int, /) -> None:
        """Leave with the last monitor of this process; waits for the carrier, for some seconds at most."""
        stay = self._take_last(key)
        if stay is not None:
            stay.end()

    async def detach_async(self, key: int, /) -> None:
        """Do the same without blocking the loop."""
        stay = self._take_last(key)
        if stay is not None:
            await _shielded(stay.end)

    def lease(self, size_bytes: int) -> Lease | None:
        """Return a lease to enter; None while this process is not in the pool.

        Raises:
            ConfigError: for a size that the budget can never give.
        """
        stay = self._stay
        if stay is None or not stay.is_of(os.getpid()) or stay.cluster is None:
            return None
        return stay.cluster.lease(size_bytes, timeout=_NO_TIMEOUT_S)

    def _take_last(self, key: int) -> "_Stay | None":
        with self._lock:
            if self._pid != os.getpid() or self._levels.pop(key, None) is None or self._levels:
                return None
            stay, self._stay = self._stay, None
            return stay

    def _highest_level(self) -> Level:
        return max((level() for level in tuple(self._levels.values())), default=Level.NORMAL)


class _Stay:
    """One stay of this process in the pool, from the first attempt to join to the end.

    Attributes:
        cluster: what was joined; None before, and after the end.
        has_tried: whether the first attempt has ended.
    """

    def __init__(self, url: str, name: str, level: Callable[[], Level]) -> None:
        self._url = url
        self._name = name
        self._level = level
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._last_problem = ""
        self.cluster: Cluster | None = None
        self.has_tried: bool = False

    def is_of(self, pid: int) -> bool:
        """Return whether it is one of that process, and not of its parent."""
        return pid == self._pid

    def begin(self) -> None:
        """Start to join."""
        try:
            OwnThread(target=self._run, name="memtools-cluster-join", daemon=True).start()
        except RuntimeError as error:  # no thread can be started
            self._log(error)
            self.has_tried = True

    def end(self) -> None:
        """Leave the pool, or give up joining it."""
        self._ended.set()
        with self._lock:
            cluster, self.cluster = self.cluster, None
        if cluster is not None:
            cluster.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._join()
            except Exception as error:
                self._log(error)
            self.has_tried = True
            if self.cluster is not None:
                return
            self._ended.wait(_RETRY_S)

    def _join(self) -> None:
        # Made anew for each attempt: a budget that is a share follows the limit.
        cluster = join(self._url, name=self._name)
        cluster.tell_level(self._level)
        cluster.open()
        with self._lock:
            if not self._ended.is_set():
                self.cluster = cluster
        if self.cluster is None:
            cluster.close()
        else:
            _log.info("this process has joined the pool: %r", cluster)

    def _log(self, error: Exception) -> None:
        problem = f"{type(error).__name__}: {error}"
        if problem == self._last_problem:
            return
        self._last_problem = problem
        known = isinstance(error, (CarrierError, ConfigError, RuntimeError))
        _log.warning(
            "this process is not in the pool of MemoryMonitor(cluster=…), and admits work without leases; "
            "it goes on trying to join: %s",
            error,
            exc_info=None if known else error,
        )


async def _shielded(function: Callable[[], object]) -> None:
    import asyncio  # on first need: programs without a loop do not load it

    try:
        ended = call_in_own_thread(function, name="memtools-cluster-close")
    except RuntimeError:  # no thread can be started
        function()
    else:
        await asyncio.shield(ended)


def cluster_of_monitor(given: object, *, title: str) -> JoinedCluster | SharedCluster:
    """Return the pool of a monitor: the cluster that was given, or the one of this process by that URL.

    Args:
        given: a `Cluster`, or a URL.
        title: the name of the argument or variable, for the error.

    Raises:
        ConfigError: for anything else, and for a URL that can never be joined.
        MissingExtraError: for a URL of Redis, where redis-py is not installed.
    """
    if isinstance(given, Cluster):
        return JoinedCluster(given)
    if not isinstance(given, str):
        raise ConfigError(title, given, "a URL as for memtools.cluster.join(), or what that returns")
    known = _all.get(given)
    if known is not None:
        return known
    try:
        join(given)  # asks nothing of the carrier
    except ConfigError as error:
        if error.name not in ("url", "pool", "budget"):
            raise  # of MEMTOOLS_LIMIT, say
        subject = "" if error.name == "url" else f"as its {error.name}: "
        raise ConfigError(title, without_password(given), f"{subject}{error.accepted}") from None
    return _all.setdefault(given, SharedCluster(given))
