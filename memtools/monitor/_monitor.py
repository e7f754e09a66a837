"""The monitor: keeps a process inside its memory limit."""

import inspect
import os
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import partial, wraps
from itertools import chain, count
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, TypeVar, cast, overload

from memtools._forks import register_after_fork
from memtools._text import printable
from memtools.analysis import Forecast
from memtools.cleanup import Reclaimer, Shrinkable, default_steps
from memtools.cleanup import register as register_shrinkable
from memtools.cleanup import unregister as unregister_shrinkable
from memtools.cleanup._registry import unregister_recyclable
from memtools.config import PREFIX, MonitorSettings, monitor_settings
from memtools.errors import ConfigError, MonitorAlreadyStarted
from memtools.events import LevelChanged, ReclaimIneffective
from memtools.ledger._context import is_failure
from memtools.monitor._admission import Admission, LeasedAdmission
from memtools.monitor._engine import Engine
from memtools.monitor._exhaustion import EXIT_CODE, Health, ProcessEnd, handle_sigterm
from memtools.monitor._forecast import make_trend
from memtools.monitor._levels import LevelMachine, Size, Thresholds
from memtools.monitor._loops import AsyncioLoop, ThreadLoop
from memtools.monitor._report import Recommendation, recommendations
from memtools.monitor._sampler import MemorySource, Sampler, SamplingInterval, process_source
from memtools.monitor._statistics import MAX_NAME_LENGTH, MonitorStatistics, OperationCounter
from memtools.readings import Level, Reading
from memtools.timelines import Timeline
from memtools.units import parse_count, parse_rate, parse_seconds, parse_size

if TYPE_CHECKING:
    from memtools.black_box import BlackBox
    from memtools.cluster import Cluster
    from memtools.cluster._shared import JoinedCluster, SharedCluster

_MonitorsById: TypeAlias = "weakref.WeakValueDictionary[int, MemoryMonitor]"

# A string: classmethod takes no type arguments at run time.
F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")
OnChange = TypeVar("OnChange", bound=Callable[[LevelChanged], object])
OnExhausted = TypeVar("OnExhausted", bound=Callable[[ReclaimIneffective], object])

_NAME: Final = "monitor"
_LEAST_BYTES: Final = 1 << 20  # no interpreter is as small

# By id, since a subclass may define an equality of its own.
_all: Final[_MonitorsById] = weakref.WeakValueDictionary()
_started: Final[_MonitorsById] = weakref.WeakValueDictionary()


class MemoryMonitor:
    """Samples memory, reports its level, and gives memory back before the limit is reached.

    ```python
    import asyncio
    from memtools import MemoryMonitor

    monitor = MemoryMonitor(warning="60%", critical="80%")

    @monitor.watch
    async def price(symbol: str) -> float:
        return 1.0

    async def main() -> None:
        async with monitor:
            await price("EUR")

    asyncio.run(main())
    print(monitor.report())
    ```

    Args:
        warning: the resident memory that enters `Level.WARNING`: bytes, a size such as `"500 MB"`, or a share of the
            effective limit such as `"60%"`, which follows when the limit changes. By default `"80%"`.
        critical: the same for `Level.CRITICAL`; by default `"90%"`. With one of `warning`, `critical` and `free`
            given, the others have no default.
        free: the headroom that must be left below the nearest limit (any cgroup above, the machine): below it is
            `WARNING`, below half of it `CRITICAL`; or a pair of sizes for both. It includes what other processes of the
            container use.
        limit: overrides the effective limit, as in `memtools.readings.effective_limit`.
        cleanup_interval: seconds between minor collections (the youngest generation); 0 for none. By default 300.
        sample_every: operations between two samples of memory; by default 10.
        min_interval: the shortest time between two samples of the sampling loop, in seconds.
        max_interval: the longest.
        callback_timeout: seconds that one callback may take.
        exhausted_after: seconds at `CRITICAL` after which memory counts as exhausted, where no clean-up has helped: for
            `health()`, and for `exit_when_exhausted()`; by default 300.
        min_flow: how many blocks of `admit()`, and as many requests of a middleware, begin each second while memory is
            critical, whatever else holds; 0 for none, by default 1.
        pressure: whether to watch the kernel's pressure files and `$MEMORY_PRESSURE_WATCH`, while started.
        reclaimer: what gives memory back; by default a `Reclaimer` of `default_steps()`.
        name: what it is called in logs, reports and metrics. While another started monitor has that name, a number
            follows: `"monitor-2"`.
        source: where memory and time are read from; for tests and rehearsals.
        forecast: whether to judge memory over hours and days: whether its floor rises, and when the limit is reached.
            `"low"`, `"balanced"` (True) or `"high"` is how early that is said, and how often in vain.
        adaptive: whether to apply the thresholds that the forecast suggests instead of those given, from the fourth
            hour on.
        forecast_state: a file, on a local disk, in which what the forecast has learned survives a restart.
        cluster: a pool of processes: the others are told its level, and `admit(size)` takes a lease as well. What
            `memtools.cluster.join` returns; or a URL as for that, such as
            `"sqlite:////run/app/memory.db?pool=workers&budget=80%"`, for a pool that is joined while the monitor is
            started, once for all monitors of the process, in the background.
        black_box: a folder for the file that says who held what when the process was killed (`memtools.black_box`),
            best on a tmpfs; True for `/dev/shm`. It is written from the start of the monitor to its end.

    What is not given here, the environment may give: `MEMTOOLS_WARNING`, `MEMTOOLS_CRITICAL`, `MEMTOOLS_LIMIT`,
    `MEMTOOLS_CLEANUP_INTERVAL`, `MEMTOOLS_SAMPLE_EVERY`, `MEMTOOLS_EXHAUSTED_AFTER`, `MEMTOOLS_MIN_FLOW`,
    `MEMTOOLS_BLACK_BOX`, `MEMTOOLS_FORECAST`; and, without a `source`, `MEMTOOLS_CLUSTER`. Another variable that begins
    like these is a `ConfigWarning`. At its start the monitor logs thresholds that are below what is in use, or above
    the limit.

    Raises:
        ConfigError: for an argument, or a variable, that makes no sense, naming it; for bare numbers below 1 MiB, too,
            which are bytes.

    Threads: every method may be called from any thread. Fork: a child has the counts and callbacks. The first look at
    the monitor there (`level`, `check`, `admit`, `statistics`, `report`, an operation) samples, and starts the thread
    of the sampling loop again. A task does not start again, since its loop is the parent's: each look that is due
    samples then. `start` and `async with` may be called once more in each child.
    Cost: docs/monitor.md.
    """

    def __init__(
        self,
        warning: Size | None = None,
        critical: Size | None = None,
        *,
        free: Size | tuple[Size, Size] | None = None,
        limit: Size | None = None,
        cleanup_interval: float | None = None,
        sample_every: int | None = None,
        min_interval: float = 0.05,
        max_interval: float = 5.0,
        callback_timeout: float = 5.0,
        exhausted_after: float | None = None,
        min_flow: float | None = None,
        pressure: bool = True,
        reclaimer: Reclaimer | None = None,
        name: str = _NAME,
        source: MemorySource | None = None,
        forecast: bool | Literal["low", "balanced", "high"] | None = None,
        adaptive: bool = False,
        forecast_state: str | os.PathLike[str] | None = None,
        cluster: "Cluster | str | None" = None,
        black_box: str | os.PathLike[str] | bool | None = None,
    ) -> None:
        chosen = _Settings(monitor_settings())
        self._is_scripted = source is not None
        warning, critical = chosen.thresholds(warning, critical, free)
        if source is None:
            _refuse_small_numbers(warning=warning, critical=critical, free=free)
        pool = self._pool = _pool_of(cluster, None if self._is_scripted else chosen.get("cluster", None))
        source = source or process_source(limit)
        thresholds = Thresholds(warning, critical, free, lambda: source.limit().value_bytes)
        interval = _parse_interval(min_interval, max_interval)
        self._name = _parse_name(name)
        sampler = Sampler(source, thresholds, LevelMachine(), interval)
        level: Callable[[], Level] = partial(getattr, sampler, "level")
        shown_name = "" if self._name == _NAME else self._name  # in the list of nodes that of the program says more
        # Nothing in here refers to this object: a cycle would keep it until a collection.
        self._join_pool = partial(pool.attach, id(self), level, shown_name) if pool is not None else _do_nothing
        self._engine = Engine(
            source,
            sampler,
            reclaimer or Reclaimer(default_steps(), read=source.used, clock=source.clock),
            name=self._name,
            sample_every=parse_count(chosen.get("sample_every", sample_every, 10), name="sample_every"),
            cleanup_interval_s=chosen.seconds("cleanup_interval", cleanup_interval, 300.0),
            callback_timeout_s=parse_seconds(callback_timeout, name="callback_timeout", above_zero=True),
            exhausted_after_s=chosen.seconds("exhausted_after", exhausted_after, 300.0, above_zero=True),
            min_flow=parse_rate(chosen.get("min_flow", min_flow, 1.0), name="min_flow"),
            pressure=bool(pressure),
            trend=make_trend(chosen.get("forecast", forecast), source, adaptive=adaptive, state_path=forecast_state),
            on_resume=self._join_pool,
        )
        self._engine.black_box = _make_black_box(chosen.get("black_box", black_box))
        if cluster is not None and not isinstance(cluster, str):
            self._join_pool()  # which the program has joined, whether this is started or not
        _all[id(self)] = self

    @property
    def name(self) -> str:
        """What it is called in logs, reports and metrics: as it was named, or with a number after it."""
        return self._engine.name

    @property
    def timeline(self) -> Timeline:
        """What the sampling loop and `check()` have read, with the changes of level, clean-ups and full collections.

        `monitor.timeline.mark("deploy", "1.4.2")` adds an event. A forked child begins a timeline of its own.
        """
        return self._engine.timeline

    @property
    def forecast(self) -> Forecast | None:
        """When the limit is reached; None while no floor rises, and without `forecast=True`."""
        found = self._engine.forecast
        return None if found is None else found.forecast()

    @property
    def level(self) -> Level:
        """How short memory is, by the last sample."""
        self._engine.attend()
        return self._engine.sampler.level

    @overload
    def watch(self, function: F, /, *, name: str | None = None) -> F: ...
    @overload
    def watch(self, function: None = None, /, *, name: str) -> Callable[[F], F]: ...
    def watch(self, function: Any = None, /, *, name: str | None = None) -> Any:
        """Count each call of a function or coroutine function as an operation.

        Name, signature, kind and pickling stay as they are. Every `sample_every`-th operation, of all functions
        together, samples memory.

        Args:
            function: the function; or none, to give a name.
            name: what statistics call it; by default its module and qualified name.

        Raises:
            ConfigError: for classes, generators, and objects that cannot be called.
        """
        get_counter = self._engine.operations.get
        if function is None:
            return partial(_wrap_operation, get_counter=get_counter, name=name)
        return _wrap_operation(function, get_counter, name)

    def record(self, name: str, duration_s: float, *, failed: bool = False) -> None:
        """Count an operation that was timed by hand.

        Args:
            name: what statistics call it. From the 257th name on all are counted as `"<other>"`.
            duration_s: its wall time in seconds; a negative or infinite one, or NaN (a clock was set), counts as 0.
            failed: whether it failed.
        """
        self._engine.operations.get(name).add(duration_s if 0.0 < duration_s < 1e12 else 0.0, failed)

    def check(self) -> Reading:
        """Sample memory now, act on it in the calling thread, and return the reading.

        Raises:
            ReadingError: when the system refuses the reading.
        """
        return self._engine.check()

    def admit(self, size: Size = 0) -> Admission:
        """Return a context whose block begins when memory allows it: back-pressure.

        Entering waits while the highest level holds, or `size` more would reach its threshold. A block is always
        admitted when none is active, and while the highest level holds `min_flow` of them a second are; the others
        begin in order of arrival. For `async with`, and for `with` in threads. `task_scope(admit=monitor)` uses one for
        each task. Once the process ends (`exit_when_exhausted`), entering raises `AdmissionRefused`. With a `cluster`
        it also waits for a lease of `size`, which ends with the block; with one by its URL there is no lease while the
        process is not in the pool.

        Args:
            size: what the work will need, in bytes or as a size.

        Raises:
            ConfigError: for a value that is no size; with a `cluster` for one that its budget can never give.
        """
        size_bytes = parse_size(size, name="size")
        self._engine.attend()
        if self._pool is not None and size_bytes:
            self._pool.lease(size_bytes)  # refuses a size that is never given
            return LeasedAdmission(self._engine.admissions, size_bytes, self._pool)
        return Admission(self._engine.admissions, size_bytes)

    def try_admit(self) -> bool:
        """Return whether work that cannot wait may begin now: a request that is refused otherwise.

        True below `CRITICAL`; at `CRITICAL` for `min_flow` calls a second; False once the process ends
        (`exit_when_exhausted`). The level's own hysteresis is the one that counts. The middlewares ask it.
        """
        return self._engine.try_admit()

    def health(self) -> Health:
        """Return what a supervisor has to know: whether to send work here, and whether to restart the process.

        ```python
        monitor = MemoryMonitor()
        assert monitor.health().status == "stopped"  # it has not been started, so it knows nothing
        with monitor:
            monitor.check()
            assert monitor.health().is_ready
        ```

        `memtools.integrations.health` answers probes with it. Cost: some microseconds; it takes no reading and waits
        for nothing.
        """
        return self._engine.health()

    def exit_when_exhausted(
        self,
        *,
        grace: float = 30.0,
        code: int = EXIT_CODE,
        report_file: str | os.PathLike[str] | None = None,
    ) -> None:
        """End the process once memory is exhausted (`exhausted_after`), so that its supervisor starts another one.

        In this order: no more admissions; the report into the log; active admissions get half of the grace to end;
        SIGTERM to the process itself, on which servers end as they do for their supervisor; and when the grace is over,
        `os._exit(code)`. Where SIGTERM has no handler yet and this is called in the main thread, a handler is installed
        that ends the program by `SystemExit(code)`, so that its `finally` blocks run; other SIGTERMs go on doing what
        they did. Under gunicorn and the workers of uvicorn it is the worker that ends. Only the sampling loop does it:
        the monitor has to be started. docs/kubernetes.md has the codes that supervisors see.

        Args:
            grace: seconds until `os._exit`.
            code: the exit code, from 1 to 125; by default 75, the EX_TEMPFAIL of sysexits.h.
            report_file: a file that the report is written to as well, such as "/dev/termination-log"; `{pid}` in it is
                replaced.

        Raises:
            ConfigError: for an argument that makes no sense, as a code on which gunicorn stops.
        """
        engine = self._engine
        engine.end = ProcessEnd(
            grace_s=grace, code=code, report_file=report_file, admissions=engine.admissions, report=engine.report
        )
        handle_sigterm()

    def on_warning(self, function: OnChange) -> OnChange:
        """Call `function` with a `LevelChanged` when the level becomes `WARNING`, from above or below.

        A plain function or a coroutine function; it is returned, so this serves as a decorator. What it raises is
        logged and counted; after five failures in a row it is not called for 300 s.

        Raises:
            ConfigError: for an object that cannot be called.
        """
        self._engine.callbacks.add(function, "warning")
        return function

    def on_critical(self, function: OnChange) -> OnChange:
        """Do the same for `CRITICAL`."""
        self._engine.callbacks.add(function, "critical")
        return function

    def on_normal(self, function: OnChange) -> OnChange:
        """Do the same for the way back to `NORMAL`."""
        self._engine.callbacks.add(function, "normal")
        return function

    def on_exhausted(self, function: OnExhausted) -> OnExhausted:
        """Call `function` with a `ReclaimIneffective`, once, when `CRITICAL` holds after all clean-up steps."""
        self._engine.callbacks.add(function, "exhausted")
        return function

    def register(self, target: Any) -> None:
        """Have an object give memory back when it runs short; the object is held weakly.

        Args:
            target: has `shrink(level, deadline) -> bytes given back`, called early (`memtools.cleanup.register`: any
                monitor calls it), or `recycle()`, plain or async, called after all clean-up steps at `CRITICAL`; or
                both.

        Raises:
            ConfigError: for an object that has neither, or cannot be weakly referenced.
        """
        has_shrink, has_recycle = (callable(getattr(target, name, None)) for name in ("shrink", "recycle"))
        if not has_shrink and not has_recycle:
            raise ConfigError("target", target, "an object with shrink(level, deadline) or recycle()")
        if has_shrink:
            register_shrinkable(target)
        if has_recycle:
            self._engine.callbacks.add_weak(target)

    def remove(self, target: Any) -> None:
        """Remove a callback, or a registered object; nothing happens where it is not known."""
        self._engine.callbacks.remove(target)
        unregister_recyclable(target)
        if callable(getattr(target, "shrink", None)):
            shrinkable: Shrinkable = target
            unregister_shrinkable(shrinkable)

    def statistics(self) -> MonitorStatistics:
        """Return the counts so far; copies figures and reads nothing anew, except first in a forked child."""
        self._engine.attend()
        return self._engine.statistics()

    def recommendations(self) -> tuple[Recommendation, ...]:
        """Return what to change: owners, structures, functions and tasks, with the line; the largest first.

        Cost: as `report`.
        """
        return recommendations(self.statistics())

    def report(self) -> str:
        """Return the counts so far and what to change, as text.

        Cost: walks the objects of the process, some 50 ms for each million; call it off the loop
        (`asyncio.to_thread`), and remember that it holds the GIL meanwhile.
        """
        self._engine.attend()
        return self._engine.report()

    def start(self) -> None:
        """Start the sampling loop in a thread of its own, as `with monitor:` does.

        Where the system gives no thread, that is logged, operations go on sampling, and it is tried again later.

        Raises:
            MonitorAlreadyStarted: when it is started in this process. One that was started before a fork may be started
                in the child, whether its thread runs there again or not.
        """
        self._begin()
        self._engine.start_thread()
        self._join_pool()

    def stop(self) -> None:
        """Stop the sampling loop; a second call does nothing.

        Waits for its thread, for 10 s at most, but not for a task; and for some seconds at most to leave a pool.
        """
        loop = self._end()
        if isinstance(loop, ThreadLoop):
            self._engine.stop_thread(loop)
        elif loop is not None:
            loop.request_stop()
        if self._pool is not None:
            self._pool.detach(id(self))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self._begin()
        self._engine.start_task()
        self._join_pool()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = self._end()
        if isinstance(loop, AsyncioLoop):
            await loop.stop()
        elif loop is not None:
            self._engine.stop_thread(loop)
        await self._engine.runner.cancel_background()
        if self._pool is not None:
            await self._pool.detach_async(id(self))

    def __repr__(self) -> str:
        return f"<MemoryMonitor {self.name} {self._engine.sampler.level.name} mode={self._engine.mode}>"

    def __del__(self) -> None:
        engine: Engine | None = getattr(self, "_engine", None)  # None where the arguments were refused
        if engine is None:
            return
        loop = engine.take_loop()
        if loop is None:
            return
        loop.request_stop()
        if engine.started_in != os.getpid():
            return  # the program of this forked child has not started it
        warnings.warn(f"{engine.name} was started and never stopped", ResourceWarning, source=self, stacklevel=2)

    def _begin(self) -> None:
        engine = self._engine
        engine.detect_fork()
        if engine.is_started and engine.started_in == os.getpid():
            raise MonitorAlreadyStarted(self.name)
        engine.rename(_free_name(self._name, self))
        if not self._is_scripted:
            engine.log_thresholds()
        engine.gc_pauses.start()
        engine.open_black_box()
        _started[id(self)] = self

    def _end(self) -> ThreadLoop | AsyncioLoop | None:
        _started.pop(id(self), None)
        return self._engine.take_loop()

    def _after_fork(self) -> None:
        self._engine.after_fork()


def _do_nothing() -> None:
    return


def _pool_of(argument: object, variable: object) -> "JoinedCluster | SharedCluster | None":
    """Return the pool that an argument, or else the environment, names; None where neither does."""
    if argument is None and variable is None:
        return None
    from memtools.cluster._shared import cluster_of_monitor  # it loads sqlite3

    if argument is not None:
        return cluster_of_monitor(argument, title="cluster")
    return cluster_of_monitor(variable, title=f"{PREFIX}CLUSTER")


class _Settings:
    """What the environment says, for the arguments that were not given."""

    def __init__(self, found: MonitorSettings) -> None:
        self._found: Mapping[str, Any] = found  # Any: each is of its own type, and is parsed by who takes it

    def get(self, name: str, argument: Any, default: Any = None) -> Any:
        """Return the argument, else the variable, else the default."""
        return argument if argument is not None else self._found.get(name, default)

    def seconds(self, name: str, argument: object, default: float, *, above_zero: bool = False) -> float:
        """Return the same as a time.

        Raises:
            ConfigError: when it is none.
        """
        return parse_seconds(self.get(name, argument, default), name=name, above_zero=above_zero)

    def thresholds(self, warning: Size | None, critical: Size | None, free: object) -> tuple[Size | None, Size | None]:
        """Return the thresholds in use, by default those in percent where there is none at all."""
        warning, critical = self.get("warning", warning), self.get("critical", critical)
        if warning is None and critical is None and free is None:
            return "80%", "90%"
        return warning, critical


def _make_black_box(folder: Any) -> "BlackBox | None":
    if folder is None or folder is False:
        return None
    from memtools.black_box import BlackBox  # most monitors have none
    from memtools.black_box._folder import parse_folder

    return BlackBox(parse_folder(folder, name="black_box"))


def _refuse_small_numbers(**thresholds: object) -> None:
    """Refuse thresholds such as 500, which are bytes, and were meant to be megabytes.

    Raises:
        ConfigError: naming the threshold, and what it may have been meant to be.
    """
    for name, given in thresholds.items():
        pair = cast("tuple[object, ...]", given) if isinstance(given, tuple) else (given,)
        for value in pair:
            text = str(value).strip()
            if isinstance(value, bool) or not text.isascii() or not text.isdigit() or not 0 < int(text) < _LEAST_BYTES:
                continue
            raise ConfigError(name, value, f"'{text} MB' if megabytes are meant: a bare number is bytes")


def monitors() -> tuple[MemoryMonitor, ...]:
    """Return the monitors that are started now, by name; for collectors of metrics. Safe from any thread."""
    return tuple(sorted(_alive(_started), key=lambda monitor: monitor.name))


def _alive(monitors: _MonitorsById) -> list[MemoryMonitor]:
    # `valuerefs` is one C call: a monitor that is collected meanwhile does not disturb the iteration.
    return [monitor for reference in monitors.valuerefs() if (monitor := reference()) is not None]


def _after_fork() -> None:
    # Nothing is logged and nothing waited for here: other threads of the parent may have held any lock.
    for monitor in _alive(_all):
        monitor._after_fork()  # pyright: ignore[reportPrivateUsage]  # the same module


register_after_fork(_after_fork)


def _free_name(name: str, monitor: MemoryMonitor) -> str:
    """Return `name`, or the first of `name-2`, `name-3` and so on that no other started monitor has."""
    taken = {other.name for other in _alive(_started) if other is not monitor}
    numbered = (f"{name}-{number}" for number in count(2))
    return next(each for each in chain((name,), numbered) if each not in taken)


def _parse_name(name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ConfigError("name", name, "a text that is not empty")
    return printable(name, MAX_NAME_LENGTH)


def _parse_interval(shortest: object, longest: object) -> SamplingInterval:
    min_s = parse_seconds(shortest, name="min_interval", above_zero=True)
    max_s = parse_seconds(longest, name="max_interval", above_zero=True)
    if min_s > max_s:
        raise ConfigError("min_interval", shortest, f"at most max_interval={longest!r}")
    return SamplingInterval(min_s, max_s)


def _wrap_operation(function: Any, get_counter: Callable[[str], OperationCounter], name: str | None = None) -> Any:
    """Return `function` with each call added to the counter of its name.

    A plain function around it, not the proxy of `memtools.decorators`: it binds, pickles and is a coroutine function by
    itself, it costs half as much, and it has nothing to carry. Any: what comes in goes out as it was;
    `MemoryMonitor.watch` says so to type checkers.

    Raises:
        ConfigError: for objects that cannot be called, for classes, and for generators, whose duration is their
            consumer's.
    """
    if type(function) in (classmethod, staticmethod):
        return type(function)(_wrap_operation(function.__func__, get_counter, name))

    accepted = "a function or coroutine function"
    if not callable(function) or isinstance(function, type):
        raise ConfigError("function", function, accepted)
    if _is_kind(inspect.isgeneratorfunction, function) or _is_kind(inspect.isasyncgenfunction, function):
        raise ConfigError("function", function, f"{accepted}: the duration of a generator depends on its consumer")

    counter = get_counter(_name_of(function) if name is None else name)
    return (_wrap_async if _is_kind(inspect.iscoroutinefunction, function) else _wrap_sync)(function, counter)


def _wrap_sync(function: Callable[..., Any], counter: OperationCounter) -> Callable[..., Any]:
    add, clock = counter.add, perf_counter

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        started = clock()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            add(clock() - started, is_failure(error))
            raise
        add(clock() - started)
        return result

    return call


def _wrap_async(function: Callable[..., Any], counter: OperationCounter) -> Callable[..., Any]:
    add, clock = counter.add, perf_counter

    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        started = clock()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            add(clock() - started, is_failure(error))
            raise
        add(clock() - started)
        return result

    return call


def _is_kind(is_kind: Callable[[object], bool], function: Callable[..., Any]) -> bool:
    return is_kind(function) or is_kind(vars(type(function)).get("__call__"))


def _name_of(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return _name_of(function.func)
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    module = getattr(function, "__module__", None)
    return name if module in (None, "__main__", "__mp_main__") else f"{module}.{name}"
