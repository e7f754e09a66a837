"""Dask: the memory of its workers, and tasks that wait until a worker has room for them (extra `dask`).

Dask schedules. A plugin makes the memory of each worker one of Dask's abstract resources, and what a task needs is a
restriction by that resource; so there is no queue here, and no thread in the client. Traps, and what is done about
them:

- *Restarted workers.* A worker registers before its plugins run, and the scheduler looks at tasks that no worker could
  take only when a worker comes or resumes; the plugin sets its status anew.
- *allow_other_workers.* Where no named worker is left, the scheduler ignores all restrictions, resources too; it is
  refused.
"""

import inspect
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

from memtools._text import printable
from memtools.cluster._carrier import Node
from memtools.cluster._needs import Needs, learn
from memtools.errors import ConfigError, MissingExtraError
from memtools.ledger import Usage
from memtools.monitor import MemoryMonitor
from memtools.readings import Level, effective_limit, headroom, resident_bytes
from memtools.scopes import memory_scope
from memtools.units import format_size, parse_size

try:
    import cloudpickle as _cloudpickle  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
    from dask.utils import funcname  # pyright: ignore[reportUnknownVariableType]  # it has no types
    from distributed import Client, Future, Worker, WorkerPlugin, get_worker
    from distributed.core import Status
except ImportError as _missing:
    raise MissingExtraError("distributed", "dask") from _missing

__all__ = ["MemoryPlugin", "Needs", "needs_of", "nodes", "submit"]

T = TypeVar("T")

_log = logging.getLogger("memtools.cluster")
_pickle: Final[Any] = _cloudpickle  # Any: it has no types

_NAME: Final = "memtools"  # of the plugin, and of its metric
_RESOURCE: Final = "memtools-bytes"
_PAUSE: Final = 0.8  # Dask's own, where it is told never to pause a worker
_RESERVE: Final = 0.05  # of a worker's limit, which is not promised: its own modules, and gaps in its heap
_MAX_NAME: Final = 200
_CURRENT_S: Final = 10.0  # for which what workers have is taken as it was
_LEARNED_S: Final = 1.0  # the same for the peaks of a function


class MemoryPlugin(WorkerPlugin):
    """Runs a `MemoryMonitor` on each worker, and makes its memory a resource that tasks are counted against.

    ```python
    from distributed import Client
    from memtools.cluster.dask import MemoryPlugin, nodes

    def main(address: str) -> None:
        with Client(address) as client:
            client.register_plugin(MemoryPlugin())
            for node in nodes(client):
                print(node.name, node.used_bytes, node.headroom_bytes)
    ```

    Register it once per cluster, while the workers are idle; workers that come later, or start again, have it as well.
    A worker promises what is below Dask's pause threshold (`distributed.worker.memory.pause`, 80 % of its limit), less
    what it uses when the plugin starts, and less 5 % of the limit. At the pause threshold the monitor's level is
    critical, so it collects garbage and returns free heap memory before Dask pauses the worker.

    A worker without a limit of its own takes the effective limit of its process, which it may share with other workers:
    give each a `memory_limit`. Workers that are threads of one process (`processes=False`) read the memory of all.

    Raises:
        ConfigError: in the worker, when it has no limit, and the system does not tell one.
    """

    name: str = _NAME
    idempotent: bool = True

    async def setup(self, worker: Worker) -> None:
        """Start the monitor, and tell the scheduler how much the worker promises. Called by Dask."""
        manager = worker.memory_manager
        limit_bytes = manager.memory_limit or effective_limit().value_bytes
        if not limit_bytes:
            raise ConfigError("memory_limit", None, "a size for each worker: the system does not tell one")
        critical_bytes = int(limit_bytes * (manager.memory_pause_fraction or _PAUSE))
        promised_at_most = max(critical_bytes - resident_bytes() - int(limit_bytes * _RESERVE), 0)
        self._limit_bytes = limit_bytes
        name = printable(f"dask-{worker.name}", _MAX_NAME)
        self.monitor: MemoryMonitor = MemoryMonitor(
            int(critical_bytes * 0.9), critical_bytes, limit=limit_bytes, name=name
        )
        self.monitor.start()
        try:
            await worker.set_resources(**{_RESOURCE: promised_at_most})
            worker.metrics[_NAME] = self._describe
            await worker.heartbeat()  # so that a client sees it at once
        except BaseException:
            self.teardown(worker)
            raise
        if worker.status == Status.running:
            worker.status = Status.paused
            worker.status = Status.running  # the scheduler looks again at tasks that no worker could take

    def teardown(self, worker: Worker) -> None:
        """Stop the monitor. Called by Dask."""
        worker.metrics.pop(_NAME, None)
        self.monitor.stop()

    def _describe(self, worker: Worker) -> dict[str, Any]:
        state = worker.state
        promised = state.total_resources.get(_RESOURCE, 0) - state.available_resources.get(_RESOURCE, 0)
        return {
            "pid": os.getpid(),
            "used": resident_bytes(),
            "limit": self._limit_bytes,
            "headroom": headroom(self._limit_bytes).value_bytes,
            "level": int(self.monitor.level),
            "promised": int(promised),
            "interval": worker.periodic_callbacks["heartbeat"].callback_time / 1000,
        }


def nodes(client: Client) -> tuple[Node, ...]:
    """Return the workers that have the plugin, as each has last told of itself, by name.

    `leased_bytes` is the sum of what the running tasks of `submit` are counted for. With an asynchronous client this
    returns an awaitable, as Dask's own methods do. The age of a reading is right as far as the clocks of the client and
    of the scheduler agree.

    Cost: one call of the scheduler. A worker tells with its heartbeat: every half second in a small cluster.
    """
    found: tuple[Node, ...] = _sync(client, _nodes, client)
    return found


def submit(
    client: Client, function: Callable[..., T], /, *args: Any, needs: int | str = "auto", **options: Any
) -> "Future[T]":
    """Submit a call to a worker that has room for it; return Dask's own future.

    ```python
    from distributed import Client
    from memtools.cluster.dask import submit

    def load(path: str) -> int:
        with open(path, "rb") as file:
            return len(file.read())

    def main(client: Client, path: str) -> int:
        return submit(client, load, path, needs="500 MiB").result()
    ```

    Dask's scheduler places the task at once, among the workers that promise at least so much: where it expects to start
    first, and then where the fewest bytes are stored; idle workers take from the queues of others. There the task is
    held back until what is counted for the running tasks leaves room for it: first come, first served at each worker
    (by Dask's priorities), and a large one is not overtaken by smaller ones. Then, in its thread, it waits as long as
    the worker's real use and its size would reach the pause threshold and another such task is running
    (`MemoryMonitor.admit`). Tasks that were submitted without a size are not counted.

    Retries, cancellation, futures as arguments and the death of a worker are Dask's business as with `client.submit`.
    One thing differs: a task that waits is placed at a worker, so that the death of this worker counts towards its
    `distributed.scheduler.allowed-failures`. While no worker promises enough any more, the task waits for one.

    With `needs="auto"` the size is learned from the peaks of the function's own account on the workers: see `needs_of`.

    Args:
        client: with an asynchronous one this returns an awaitable of the future.
        function: a function or coroutine function.
        args: its arguments; futures in them are awaited by Dask.
        needs: how much the call may take, a size, or `"auto"`.
        options: keyword arguments of the function, and the options of `client.submit` but `allow_other_workers` and
            `actor`. Other `resources` are kept.

    Raises:
        ConfigError: before anything is submitted: for a size that is none or larger than any worker promises, for one
            of the options above, and where no worker has the plugin.
    """
    for name in ("allow_other_workers", "actor", "actors"):
        if options.get(name):
            raise ConfigError(name, options[name], "client.submit for it: Dask would not keep to the size")
    if not callable(function):
        raise ConfigError("function", function, "a function or coroutine function")
    size_bytes = None if needs == "auto" else parse_size(needs, name="needs")
    if size_bytes is not None and size_bytes <= 0:
        raise ConfigError("needs", needs, 'a size above zero, or "auto"')

    def submit_now(found_bytes: int) -> "Future[T]":
        call: Any = (_CoroutineCall if inspect.iscoroutinefunction(function) else _Call)(function, found_bytes)
        options["resources"] = {**(options.get("resources") or {}), _RESOURCE: found_bytes}
        untyped: Any = client
        future: Future[T] = untyped.submit(call, *args, **options)
        return future

    async def submit_later() -> "Future[T]":
        return submit_now(await _size_of(client, function, needs, size_bytes))

    if client.asynchronous:
        return cast("Future[T]", submit_later())
    return submit_now(_sync(client, _size_of, client, function, needs, size_bytes))


def needs_of(client: Client, function: Callable[..., Any]) -> Needs:
    """Return what `submit(client, function, needs="auto")` counts a call for now.

    It is the 95th percentile (nearest rank) of the peaks of the last calls that ended without an exception, and a
    quarter more; at most what the largest worker promises, where it then runs alone. Before the fifth such call it is
    the smallest share of a thread: what a worker promises, over its threads. Calls with a size of their own are learned
    from, too. Each change is logged.

    A peak is that of a `memory_scope` around the call (docs/ledger.md): what the function allocates, without its
    arguments, and without what C libraries allocate unseen. Where `exact` is False, or the function uses such
    libraries, better give a size.

    With an asynchronous client this returns an awaitable.

    Raises:
        ConfigError: where no worker has the plugin.
    """
    found: Needs = _sync(client, _needs_of, client, _name_of(function))
    return found


class _Call:
    """A call of a function on a worker: admitted there by its size, and measured."""

    def __init__(self, function: Callable[..., Any], size_bytes: int) -> None:
        self.function = function
        self.size_bytes = size_bytes
        self.name = _name_of(function)
        self.__name__ = funcname(function)  # Dask names tasks by it

    def __dask_tokenize__(self) -> object:
        """Return what makes two pure calls the same one: not their size."""
        return _NAME, self.function

    def __reduce__(self) -> tuple[Any, ...]:
        # As Dask pickles a function of its own: by value where its module is registered for it, or is `__main__`.
        return _unpickle_call, (type(self), _pickle.dumps(self.function), self.size_bytes)

    def __call__(self, *args: Any, **options: Any) -> Any:
        worker = get_worker()
        monitor = _monitor_of(worker)
        if monitor is None:
            return self.function(*args, **options)
        with monitor.admit(self.size_bytes), memory_scope(self.name) as scope:
            result = self.function(*args, **options)
        _publish(worker, self.name, scope.usage)
        return result


class _CoroutineCall(_Call):
    """The same for a coroutine function."""

    __tornado_coroutine__ = True  # by which Dask tells what runs in the worker's loop

    async def __call__(self, *args: Any, **options: Any) -> Any:
        worker = get_worker()
        monitor = _monitor_of(worker)
        if monitor is None:
            return await self.function(*args, **options)
        async with monitor.admit(self.size_bytes), memory_scope(self.name) as scope:
            result = await self.function(*args, **options)
        _publish(worker, self.name, scope.usage)
        return result


def _unpickle_call(kind: type[_Call], pickled: bytes, size_bytes: int) -> _Call:
    return kind(_pickle.loads(pickled), size_bytes)


def _monitor_of(worker: Worker) -> MemoryMonitor | None:
    plugin = worker.plugins.get(_NAME)
    return plugin.monitor if isinstance(plugin, MemoryPlugin) else None


def _publish(worker: Worker, name: str, usage: Usage) -> None:
    """Tell the scheduler of a peak, which keeps it for all clients, and longer than the worker lives."""
    try:
        worker.log_event(_topic_of(name), {"peak": usage.peak_bytes, "exact": usage.exact})
    except Exception:
        _log.debug("the peak of %s could not be told to the scheduler", name, exc_info=True)


def _topic_of(name: str) -> str:
    return f"memtools-peak {name}"


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", None)
    return printable(f"{function.__module__}.{name}" if name else funcname(function), _MAX_NAME)


class _Received:
    """What a client last received from the scheduler about workers and functions."""

    def __init__(self) -> None:
        self.largest_bytes = 0
        self.share_bytes = 0
        self.at = -_CURRENT_S
        self.needs: dict[str, tuple[float, Needs]] = {}


_received: Final[WeakKeyDictionary[Client, _Received]] = WeakKeyDictionary()


def _sync(client: Client, function: Callable[..., Any], *args: Any) -> Any:
    untyped: Any = client
    return untyped.sync(function, *args)


async def _workers_of(client: Client) -> list[dict[str, Any]]:
    scheduler: Any = client.scheduler
    found: dict[str, Any] = await scheduler.identity()
    return list(found["workers"].values())


async def _receive(client: Client, at_least_bytes: int = 0) -> _Received:
    """Return what the workers promise; asked anew where that is old, or was too little.

    Raises:
        ConfigError: where no worker has the plugin.
    """
    received = _received.setdefault(client, _Received())
    now = time.monotonic()
    if now - received.at < _CURRENT_S and received.largest_bytes >= at_least_bytes:
        return received
    found = [worker for worker in await _workers_of(client) if _RESOURCE in worker["resources"]]
    if not found:
        raise ConfigError("client", client, "requires workers with client.register_plugin(MemoryPlugin())")
    received.largest_bytes = int(max(worker["resources"][_RESOURCE] for worker in found))
    received.share_bytes = int(min(worker["resources"][_RESOURCE] / worker["nthreads"] for worker in found))
    received.at = now
    return received


async def _size_of(client: Client, function: Callable[..., Any], needs: object, size_bytes: int | None) -> int:
    if size_bytes is None:
        return (await _needs_of(client, _name_of(function))).value_bytes
    largest = (await _receive(client, size_bytes)).largest_bytes
    if size_bytes > largest:
        raise ConfigError("needs", needs, f"at most {format_size(largest)}, which is the most that a worker promises")
    return size_bytes


async def _needs_of(client: Client, name: str) -> Needs:
    received = await _receive(client)
    now = time.monotonic()
    at, known = received.needs.get(name, (-_LEARNED_S, None))
    if known is not None and now - at < _LEARNED_S:
        return known
    scheduler: Any = client.scheduler
    told: list[dict[str, Any]] = [event for _, event in await scheduler.events(topic=_topic_of(name)) or ()]
    found = _learn(name, [(event["peak"], event["exact"]) for event in told], received)
    if known is None or known.value_bytes != found.value_bytes:
        _log.info("needs='auto' takes for %s", found)
    received.needs[name] = now, found
    return found


def _learn(name: str, peaks: list[tuple[int, bool]], received: _Received) -> Needs:
    found = learn(name, peaks, max(received.share_bytes, 1))
    if found.value_bytes <= received.largest_bytes or found.peak_bytes is None:
        return found
    _log.warning(
        "%s needs %s, more than a worker promises: it runs alone on the largest, of %s",
        name, format_size(found.value_bytes), format_size(received.largest_bytes),
    )  # fmt: skip
    return Needs(name, max(received.largest_bytes, 1), found.runs, found.peak_bytes, found.exact)


async def _nodes(client: Client) -> tuple[Node, ...]:
    now = time.time()
    found = ((worker, worker["metrics"][_NAME]) for worker in await _workers_of(client) if _NAME in worker["metrics"])
    made = (
        Node(
            id=str(worker["id"]),
            name=str(worker["name"]),
            host=worker["host"],
            pid=told["pid"],
            used_bytes=told["used"],
            limit_bytes=told["limit"],
            headroom_bytes=told["headroom"],
            level=Level(told["level"]),
            leased_bytes=told["promised"],
            age_s=max(now - worker["last_seen"], 0.0),
            interval_s=told["interval"],
        )
        for worker, told in found
    )
    return tuple(sorted(made, key=lambda node: node.name))
