"""The monitor as its users see it.

Covers: arguments, starting and ending, the names under which everything is reached.
Leaves to others: all that happens (`_keeper` and its parts).
"""

import inspect
import os
import warnings
import weakref
from collections.abc import Callable
from functools import partial, wraps
from time import perf_counter
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from memtools.cleanup import Reclaimer, Shrinkable, default_steps
from memtools.cleanup import register as register_shrinkable
from memtools.cleanup import unregister as unregister_shrinkable
from memtools.errors import ConfigError, MemtoolsError
from memtools.events import LevelChanged, ReclaimIneffective
from memtools.ledger._context import is_failure
from memtools.monitor._admission import Admission
from memtools.monitor._engine import Keeper, sum_up
from memtools.monitor._levels import LevelMachine, Size, Thresholds
from memtools.monitor._loops import TaskBeat
from memtools.monitor._report import Recommendation, in_words, recommend
from memtools.monitor._sampler import Lookout, MemorySource, Pace, real_gauges
from memtools.monitor._statistics import MonitorStatistics, Operation, presentable
from memtools.readings import Level, Reading
from memtools.units import parse_count, parse_seconds, parse_size

# The small arguments of a monitor, and the error for starting it twice.
#
# Leaves to others: thresholds (`_thresholds`).


class MonitorAlreadyStarted(MemtoolsError, RuntimeError):
    """A monitor was started while it is started.

    Attributes:
        name: the monitor's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} is started already: stop it first, or make a second monitor"


def parse_name(name: object) -> str:
    """Return `name` as logs may show it; ConfigError for what is no text."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigError("name", name, "a text that is not empty")
    return presentable(name)


def parse_positive(seconds: object, name: str) -> float:
    """Return `seconds` above 0; ConfigError for anything else."""
    parsed = parse_seconds(seconds, name=name)
    if parsed == 0:
        raise ConfigError(name, seconds, "seconds as a number above 0")
    return parsed


def parse_pace(shortest: object, longest: object) -> Pace:
    """Return the pace between the two intervals; ConfigError for what makes no sense."""
    shortest_s, longest_s = parse_positive(shortest, "min_interval"), parse_positive(longest, "max_interval")
    if shortest_s > longest_s:
        raise ConfigError("min_interval", shortest, f"at most max_interval={longest!r}")
    return Pace(shortest_s, longest_s)


# Which monitors are started, and what becomes of them in a forked child.
#
# Covers: the weak set for collectors, the one fork handler. Leaves to others: what a monitor renews (`_monitor`).

# By id, for a monitor may be compared in ways of its own. `valuerefs` is one C call: nobody's end disturbs a walk.
_started: "weakref.WeakValueDictionary[int, MemoryMonitor]" = weakref.WeakValueDictionary()
_all: "weakref.WeakValueDictionary[int, MemoryMonitor]" = weakref.WeakValueDictionary()


def monitors() -> "tuple[MemoryMonitor, ...]":
    """Return the monitors that are started now, by name; for collectors of metrics. Safe from any thread."""
    return tuple(sorted(_alive(_started), key=lambda monitor: monitor.name))


def note_made(monitor: "MemoryMonitor") -> None:
    """Have `monitor` renewed in forked children."""
    _all[id(monitor)] = monitor


def note_started(monitor: "MemoryMonitor") -> None:
    """Have `monitor` listed by `monitors()`."""
    _started[id(monitor)] = monitor


def note_stopped(monitor: "MemoryMonitor") -> None:
    """Have `monitor` listed no more."""
    _started.pop(id(monitor), None)


def _alive(known: "weakref.WeakValueDictionary[int, MemoryMonitor]") -> "list[MemoryMonitor]":
    return [monitor for reference in known.valuerefs() if (monitor := reference()) is not None]


def _renew_in_child() -> None:
    # Nothing is logged and nothing waited for here: other threads of the parent may have held any lock.
    for monitor in _alive(_all):
        monitor._renew_after_fork()  # pyright: ignore[reportPrivateUsage]  # its own room


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)


# Functions whose calls are operations: `@monitor.watch`.
#
# Covers: plain and coroutine functions, class and static methods; name, signature, kind and pickling stay as they were.
# Leaves to others: counting (`_operations`).
#
# A plain function around a plain function, not the proxy of `memtools.decorators`: it binds, pickles and is a coroutine
# function by itself, it costs half as much, and there is nothing that it would have to carry.


def watched(function: Any, account: Callable[[str], Operation], name: str | None = None) -> Any:
    """Return `function` with each call noted in the account of its name.

    Any: what comes in goes out as it was; `MemoryMonitor.watch` says so to type checkers.

    Raises:
        ConfigError: for what cannot be called, for classes, and for generators, whose duration is their consumer's.
    """
    if type(function) in (classmethod, staticmethod):
        return type(function)(watched(function.__func__, account, name))

    accepted = "a function or coroutine function"
    if not callable(function) or isinstance(function, type):
        raise ConfigError("function", function, accepted)
    if _is_a("isgeneratorfunction", function) or _is_a("isasyncgenfunction", function):
        raise ConfigError("function", function, f"{accepted}: how long a generator takes is up to who consumes it")

    operation = account(_name_of(function) if name is None else name)
    return (_later if _is_a("iscoroutinefunction", function) else _now)(function, operation)


def _now(function: Callable[..., Any], operation: Operation) -> Callable[..., Any]:
    note, clock = operation.note, perf_counter

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            note(clock() - began, is_failure(error))
            raise
        note(clock() - began)
        return result

    return call


def _later(function: Callable[..., Any], operation: Operation) -> Callable[..., Any]:
    note, clock = operation.note, perf_counter

    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            note(clock() - began, is_failure(error))
            raise
        note(clock() - began)
        return result

    return call


def _is_a(question: str, function: Callable[..., Any]) -> bool:
    ask: Callable[[object], bool] = getattr(inspect, question)
    return ask(function) or ask(vars(type(function)).get("__call__"))


def _name_of(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return _name_of(function.func)
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    module = getattr(function, "__module__", None)
    return name if module in (None, "__main__", "__mp_main__") else f"{module}.{name}"


# A text: classmethod takes no type arguments at run time.
F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")
OnChange = TypeVar("OnChange", bound=Callable[[LevelChanged], object])
OnExhausted = TypeVar("OnExhausted", bound=Callable[[ReclaimIneffective], object])


class MemoryMonitor:
    """Keeps this process inside its memory limit, and says so.

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
        free: the room that must be left below the first wall (any cgroup above, the machine): below it is `WARNING`,
            below half of it `CRITICAL`; or a pair of sizes for both. Sees what siblings in the container use.
        limit: overrides the effective limit, as in `memtools.readings.effective_limit`.
        cleanup_interval: seconds between light clean-ups (the youngest generation); 0 for none.
        sample_every: operations between two looks at memory.
        min_interval: the shortest time between two looks of the beat, in seconds.
        max_interval: the longest.
        callback_timeout: seconds that one callback may take.
        pressure: whether to listen to the kernel's pressure files and `$MEMORY_PRESSURE_WATCH`, while started.
        ladder: what gives memory back; by default a `Reclaimer` of `default_steps()`.
        name: what it is called in logs, reports and metrics.
        gauges: what memory and time are read from; for tests and rehearsals.

    Raises:
        ConfigError: for an argument that makes no sense, naming it.

    Threads: every method may be called from any thread. Fork: a child has the counts and callbacks; a beat in a thread
    starts again with the first look, one in a task does not.
    Cost: docs/monitor.md.
    """

    def __init__(
        self,
        warning: Size | None = None,
        critical: Size | None = None,
        *,
        free: Size | tuple[Size, Size] | None = None,
        limit: Size | None = None,
        cleanup_interval: float = 300.0,
        sample_every: int = 10,
        min_interval: float = 0.05,
        max_interval: float = 5.0,
        callback_timeout: float = 5.0,
        pressure: bool = True,
        ladder: Reclaimer | None = None,
        name: str = "monitor",
        gauges: MemorySource | None = None,
    ) -> None:
        if warning is None and critical is None and free is None:
            warning, critical = "80%", "90%"
        gauges = gauges or real_gauges(limit)
        thresholds = Thresholds(warning, critical, free, lambda: gauges.limit().value_bytes)
        pace = parse_pace(min_interval, max_interval)
        self._keeper = Keeper(
            gauges,
            Lookout(gauges, thresholds, LevelMachine(), pace),
            ladder or Reclaimer(default_steps(), read=gauges.used, clock=gauges.clock),
            name=parse_name(name),
            sample_every=parse_count(sample_every, name="sample_every"),
            cleanup_interval_s=parse_seconds(cleanup_interval, name="cleanup_interval"),
            callback_timeout_s=parse_positive(callback_timeout, "callback_timeout"),
            pressure=bool(pressure),
        )
        note_made(self)

    @property
    def name(self) -> str:
        """What it is called in logs, reports and metrics."""
        return self._keeper.name

    @property
    def level(self) -> Level:
        """How short memory is, by the last look."""
        return self._keeper.lookout.level

    @overload
    def watch(self, function: F, /, *, name: str | None = None) -> F: ...
    @overload
    def watch(self, function: None = None, /, *, name: str) -> Callable[[F], F]: ...
    def watch(self, function: Any = None, /, *, name: str | None = None) -> Any:
        """Have each call of a function or coroutine function counted as an operation.

        Name, signature, kind and pickling stay as they are. Every `sample_every`-th operation, of all functions
        together, looks at memory.

        Args:
            function: the function; or none, to give a name.
            name: what statistics call it; by default its module and qualified name.

        Raises:
            ConfigError: for classes, generators, and what cannot be called.
        """
        account = self._keeper.operations.named
        return partial(watched, account=account, name=name) if function is None else watched(function, account, name)

    def record(self, name: str, duration_s: float, *, failed: bool = False) -> None:
        """Count an operation that was timed by hand.

        Args:
            name: what statistics call it. From the 257th name on all go into `"<other>"`.
            duration_s: its wall time in seconds; what is negative or no number (a clock was set) counts as 0.
            failed: whether it failed.
        """
        self._keeper.operations.named(name).note(duration_s if 0.0 < duration_s < 1e12 else 0.0, failed)

    def check(self) -> Reading:
        """Look at memory now, act on it in place, and return what was seen.

        Raises:
            ReadingError: when the system refuses the reading.
        """
        return self._keeper.check()

    def admit(self, size: Size = 0) -> Admission:
        """Return what a piece of work is run inside, once it may begin: back-pressure.

        Entering waits while the highest level holds, or `size` more would reach its threshold. One is always let in
        when nobody is inside; the others come in order of arrival. For `async with`, and for `with` in threads.
        `task_scope(admit=monitor)` asks this for each task.

        Args:
            size: what the work will need, in bytes or as a size.

        Raises:
            ConfigError: for what is no size.
        """
        return Admission(self._keeper.row, parse_size(size, name="size"))

    def on_warning(self, function: OnChange) -> OnChange:
        """Have `function` called with a `LevelChanged` when the level becomes `WARNING`, from above or below.

        Plain function or coroutine function; returns it, so it serves as a decorator. What it raises is logged and
        counted; after five failures in a row it is left out for 300 s.

        Raises:
            ConfigError: for what cannot be called.
        """
        self._keeper.callbacks.add(function, "warning")
        return function

    def on_critical(self, function: OnChange) -> OnChange:
        """Do the same for `CRITICAL`."""
        self._keeper.callbacks.add(function, "critical")
        return function

    def on_normal(self, function: OnChange) -> OnChange:
        """Do the same for the way back to `NORMAL`."""
        self._keeper.callbacks.add(function, "normal")
        return function

    def on_exhausted(self, function: OnExhausted) -> OnExhausted:
        """Have `function` called with a `ReclaimIneffective` when `CRITICAL` holds after everything was tried, once."""
        self._keeper.callbacks.add(function, "exhausted")
        return function

    def register(self, thing: Any) -> None:
        """Have `thing` give memory back when it runs short; it is held weakly.

        Args:
            thing: has `shrink(level, deadline) -> bytes given back`, taken early (`memtools.cleanup.register`: any
                monitor asks it), or `recycle()`, sync or async, taken after the ladder at `CRITICAL`; or both.

        Raises:
            ConfigError: for a thing that has neither, or cannot be weakly referenced.
        """
        has_shrink, has_recycle = (callable(getattr(thing, name, None)) for name in ("shrink", "recycle"))
        if not has_shrink and not has_recycle:
            raise ConfigError("thing", thing, "an object with shrink(level, deadline) or recycle()")
        if has_shrink:
            register_shrinkable(thing)
        if has_recycle:
            self._keeper.callbacks.add_weakly(thing)

    def remove(self, function_or_thing: Any) -> None:
        """Call a callback, or ask a registered thing, no more; nothing happens where it is not known."""
        self._keeper.callbacks.remove(function_or_thing)
        if callable(getattr(function_or_thing, "shrink", None)):
            shrinkable: Shrinkable = function_or_thing
            unregister_shrinkable(shrinkable)

    def statistics(self) -> MonitorStatistics:
        """Return what was seen and done so far; copies figures and reads nothing anew."""
        return sum_up(self._keeper)

    def recommendations(self) -> tuple[Recommendation, ...]:
        """Return what to change, what holds most first: owners, structures, functions and tasks, with the line.

        Cost: as `report`.
        """
        return recommend(self.statistics())

    def report(self) -> str:
        """Return what was seen and done, and what to change, as text.

        Cost: walks the objects of the process, some 50 ms for each million; call it off the loop
        (`asyncio.to_thread`), and remember that it holds the GIL meanwhile.
        """
        seen = self.statistics()
        return in_words(seen, recommend(seen))

    def start(self) -> None:
        """Start the beat in a thread of its own, as `with monitor:` does.

        Where the system gives no thread, that is logged, operations go on looking, and it is tried again later.

        Raises:
            MonitorAlreadyStarted: when it is started.
        """
        self._begin()
        self._keeper.start_thread()

    def stop(self) -> None:
        """End the beat and wait for its thread; a second call does nothing. Ends a beat in a task without waiting."""
        beat = self._end()
        if beat is None:
            return
        if beat.kind == "thread":
            beat.stop()
        else:
            beat.abandon()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self._begin()
        self._keeper.beat_of = TaskBeat(self.name, self._keeper, self._keeper.open_watch)
        self._keeper.beat_of.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        beat = self._end()
        if beat is not None:
            await beat.stop()
        await self._keeper.caller.cancel_adrift()

    def __repr__(self) -> str:
        return f"<MemoryMonitor {self.name} {self.level.name} beat={self._keeper.beat_kind}>"

    def __del__(self) -> None:
        keeper = getattr(self, "_keeper", None)
        if keeper is None or keeper.beat_of is None:
            return
        beat, keeper.beat_of = keeper.beat_of, None
        keeper.is_thread_wanted = False
        keeper.pauses.stop()
        beat.abandon()
        warnings.warn(f"{keeper.name} was started and never stopped", ResourceWarning, source=self, stacklevel=2)

    def _begin(self) -> None:
        if self._keeper.is_started:
            raise MonitorAlreadyStarted(self.name)
        self._keeper.pauses.start()
        note_started(self)

    def _end(self) -> Any:
        beat, self._keeper.beat_of = self._keeper.beat_of, None
        self._keeper.is_thread_wanted = False
        self._keeper.pauses.stop()
        note_stopped(self)
        return beat

    def _renew_after_fork(self) -> None:
        self._keeper.renew()
