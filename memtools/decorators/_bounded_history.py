"""`@bounded_history`: remember the last calls of a function."""

import functools
import logging
import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar, cast, overload

from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools._suggestions import suggest_arguments
from memtools.decorators._decoration import (
    accept_descriptors,
    decorate_callable,
    is_descriptor,
    is_enabled,
    report_name,
    with_attribute,
)
from memtools.errors import ConfigError
from memtools.ledger import Meter, Owner, choose_meter
from memtools.ledger._ledger import current_usage
from memtools.scopes._calls import CallOptions
from memtools.scopes._functions import call_kind, copy_function, is_wrapped
from memtools.structures import BoundedList
from memtools.units import parse_count

if TYPE_CHECKING:
    from memtools.decorators._decoration import Recorded

MAX_KEYS: Final = 1000
NO_KEY: Final = "<no key>"

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound="History | KeyedHistory")
T = TypeVar("T")

_log = logging.getLogger("memtools.history")


@record
class CallRecord:
    """One call that has ended.

    Attributes:
        started: the start in seconds of `time.time()`.
        duration_s: wall time in seconds.
        outcome: `"ok"`, or the name of the exception's type.
        retained_bytes: the bytes that the call had allocated and that were live at its end.
        peak_bytes: its highest live bytes.
        resident_delta_bytes: the change of the whole process's resident memory.
        exact: False where allocations of other code may be in the figures.
        result: the returned value with `keep_results=True`, else None.
    """

    started: float
    duration_s: float
    outcome: str
    retained_bytes: int
    peak_bytes: int
    resident_delta_bytes: int
    exact: bool
    result: Any = None  # Any: what the function returns


@record
class HistorySummary:
    """The remembered calls in numbers; durations in seconds, None where there are no calls.

    Attributes:
        count: how many calls are remembered.
        failures: how many of them ended with an exception.
        mean_s: the mean duration.
        p50_s: the median duration.
        p95_s: the duration that 95 % of the calls did not exceed.
        p99_s: the duration that 99 % of the calls did not exceed.
        retained_bytes: the sum of their retained bytes.
    """

    count: int
    failures: int
    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    retained_bytes: int

    def __str__(self) -> str:
        if self.mean_s is None:
            return "no calls"
        return (
            f"{self.count} calls, {self.failures} failed, mean {self.mean_s:.4f} s, p50 {self.p50_s:.4f} s, "
            f"p95 {self.p95_s:.4f} s, p99 {self.p99_s:.4f} s"
        )


class History(BoundedList[CallRecord]):
    """The newest calls of a function, oldest first."""

    __slots__ = ()

    def summary(self) -> HistorySummary:
        """Return count, mean, percentiles (nearest rank) and failures of the calls that are remembered."""
        return _summarise(self[:])


class KeyedHistory(Mapping[Hashable, History]):
    """One history per key, for the `max_keys` keys that were used last. Thread-safe."""

    def __init__(self, make: Callable[[], History], *, max_keys: int = MAX_KEYS) -> None:
        self._make = make
        self._max_keys = max_keys
        self._lock = threading.RLock()
        self._by_key: OrderedDict[Hashable, History] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        # With a function that is pickled by value: the histories stay here.
        return partial(KeyedHistory, self._make, max_keys=self._max_keys), ()

    def for_key(self, key: Hashable) -> History:
        """Return the history for `key`; a new one may replace that of the least recently used key."""
        with self._lock:
            history = self._by_key.get(key)
            if history is None:
                history = self._by_key[key] = self._make()
                if len(self._by_key) > self._max_keys:
                    self._by_key.popitem(last=False)
            self._by_key.move_to_end(key)
            return history

    def summary(self) -> HistorySummary:
        """Return the summary over all keys."""
        with self._lock:
            return _summarise(call for history in self._by_key.values() for call in history)

    def __getitem__(self, key: Hashable) -> History:
        with self._lock:
            return self._by_key[key]

    def __iter__(self) -> Iterator[Hashable]:
        with self._lock:
            return iter(tuple(self._by_key))

    def __len__(self) -> int:
        return len(self._by_key)

    def __repr__(self) -> str:
        return f"<KeyedHistory of {len(self)} keys>"


class ObjectHistories:
    """One history per object, for as long as the object lives.

    By identity: objects that compare equal have histories of their own, and objects need not be hashable.

    Args:
        make: makes an empty history.
        shared: the history of all objects that cannot be weakly referenced: their end would not be noticed.
    """

    def __init__(self, make: Callable[[], History], shared: History) -> None:
        self._make = make
        self._shared = shared
        self._by_id: dict[int, _ObjectEntry] = {}

    def for_object(self, instance: object) -> History:
        """Return the history of `instance`, a new one at the first call."""
        entry = self._entry(instance)
        return self._shared if entry is None else entry.history

    def function_for(self, instance: object, function: FunctionType) -> FunctionType:
        """Return a copy of `function` whose `history` is that of `instance`; the same one at each call."""
        entry = self._entry(instance)
        if entry is None:
            return function
        if entry.function is None:
            entry.function = copy_function(function)
            vars(entry.function)["history"] = entry.history
        return entry.function

    def _entry(self, instance: object) -> "_ObjectEntry | None":
        key = id(instance)
        found = self._by_id.get(key)
        if found is not None and found.reference() is instance:
            return found

        by_id = self._by_id

        def remove(dead: "weakref.ref[Any]") -> None:
            # A new object may have got the id of the dead one, and its history is in the dict already.
            current = by_id.get(key)
            if current is not None and current.reference is dead:
                by_id.pop(key, None)

        try:
            reference = weakref.ref(instance, remove)
        except TypeError:
            return None
        entry = by_id[key] = _ObjectEntry(reference, self._make())
        return entry

    def __len__(self) -> int:
        return len(self._by_id)


class _ObjectEntry:
    __slots__ = ("function", "history", "reference")

    def __init__(self, reference: "weakref.ref[Any]", history: History) -> None:
        self.reference = reference
        self.history = history
        self.function: FunctionType | None = None


class _RecordedPerObject:
    """A method that, bound to an object, has that object's history.

    Any: it takes, returns and has what the method does.
    """

    def __init__(self, recorded: Any, histories: ObjectHistories) -> None:
        functools.update_wrapper(self, recorded)
        self._recorded = recorded
        self._histories = histories

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self._recorded
        if type(self._recorded) is not FunctionType:
            return self._recorded.__get__(instance, owner)
        return MethodType(self._histories.function_for(instance, self._recorded), instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._recorded(*args, **kwargs)


class _HistoryDecorator(Protocol[H]):
    @overload
    def __call__(self, function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # before the plain callable, which a staticmethod is as well
        self, function: "staticmethod[P, R]", /
    ) -> "staticmethod[P, R]": ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> "Recorded[P, R, H]": ...


@overload
def bounded_history(function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
@overload
def bounded_history(  # type: ignore[overload-overlap]  # as above
    function: "staticmethod[P, R]", /
) -> "staticmethod[P, R]": ...
@overload
def bounded_history(function: Callable[P, R], /) -> "Recorded[P, R, History]": ...
@overload
def bounded_history(
    maxlen: int = 1000,
    /,
    *,
    keep: int | None = None,
    key: None = None,
    keep_results: bool = False,
    per_instance: bool = False,
    meter: str | None = None,
    enabled: bool | None = None,
) -> _HistoryDecorator[History]: ...
@overload
def bounded_history(
    maxlen: int = 1000,
    /,
    *,
    keep: int | None = None,
    key: Callable[..., Hashable],
    keep_results: bool = False,
    meter: str | None = None,
    enabled: bool | None = None,
) -> _HistoryDecorator[KeyedHistory]: ...
@suggest_arguments(
    by="key",
    result="keep_results",
    maxlen="it as the first argument, without a name",
    sample="sample_every= of profile_memory: bounded_history remembers every call",
    sample_every="sample_every= of profile_memory: bounded_history remembers every call",
)
def bounded_history(
    maxlen: Any = 1000,
    /,
    *,
    keep: int | None = None,
    key: Callable[..., Hashable] | None = None,
    keep_results: bool = False,
    per_instance: bool = False,
    meter: str | None = None,
    enabled: bool | None = None,
) -> Any:
    """Remember the last calls of a function: start, duration, outcome and memory of each.

    With or without arguments. The arguments of the calls are never kept, their results only on request.

    ```python
    @bounded_history(100)
    def tick() -> None: ...

    tick()
    assert len(tick.history) == 1
    print(tick.history.summary())
    ```

    Args:
        maxlen: the highest number of remembered calls; the function, where the decorator is used without arguments.
        keep: how many calls are left after the bound was exceeded, see `BoundedList`; by default `maxlen`.
        key: returns a key for the arguments of a call; calls are then remembered for each of up to 1,000 keys. Where it
            raises, the call is remembered under `"<no key>"`, and the failure is logged once.
        keep_results: whether to keep the results of plain and coroutine functions.
        per_instance: for methods: one history per object, for as long as the object lives: `obj.method.history`.
            Objects that cannot be weakly referenced share the history of the class.
        meter: `"native"`, `"tracemalloc"` or `"rss"`; by default `MEMTOOLS_METER`, else `"native"` where it was built,
            else `"rss"`; read when the function is decorated.
        enabled: False returns the bare function; by default `MEMTOOLS_ENABLED`, else True.

    Raises:
        ConfigError: when decorating, for an invalid argument.
    """
    given: object = maxlen
    is_bare = callable(given) or is_descriptor(given)
    make = _history_factory(1000 if is_bare else given, keep)
    if key is not None and not callable(key):
        raise ConfigError("key", key, "a callable that takes the arguments of a call and returns a key")
    if key is not None and per_instance:
        raise ConfigError("per_instance", per_instance, "either key= or per_instance=, not both")
    chosen = choose_meter(meter)

    def decorate(function: Any) -> Any:
        kind = call_kind(function)
        if keep_results and kind not in ("plain", "coroutine"):
            raise ConfigError("keep_results", keep_results, f"False for a {kind}: what it yields is not kept")
        histories = _Histories(make, key, per_instance)
        if not is_enabled(enabled):
            return with_attribute(function, "history", histories.shared)

        options = _RecordedCalls(report_name(function), chosen, histories, is_wrapped(function), keep_results)
        recorded = decorate_callable(function, options, {"history": histories.shared})
        return _RecordedPerObject(recorded, histories.per_object) if histories.per_object is not None else recorded

    if is_bare:
        return accept_descriptors(decorate)(maxlen)
    return accept_descriptors(decorate)


def _history_factory(maxlen: object, keep: int | None) -> Callable[[], History]:
    maxlen = parse_count(maxlen, name="maxlen")
    History(maxlen=maxlen, keep=keep, shrinkable=False)  # refuses an invalid `keep` now, not at the first call
    return partial(History, maxlen=maxlen, keep=keep)


class _Histories:
    """The histories of one decorated function: one for the function, one per key, or one per object."""

    def __init__(
        self,
        make: Callable[[], History],
        key: Callable[..., Hashable] | None,
        per_instance: bool,
        shared: "History | KeyedHistory | None" = None,
    ) -> None:
        self._arguments = make, key, per_instance
        self._key = key
        self._key_failures = RateLimitedLogger(_log, interval_s=math.inf)  # logs the first failure only
        if shared is None:
            shared = make() if key is None else KeyedHistory(make)
        self.shared: History | KeyedHistory = shared
        self._keyed = shared if isinstance(shared, KeyedHistory) else None
        self.per_object = ObjectHistories(make, cast("History", shared)) if per_instance else None

    def __reduce__(self) -> tuple[Any, ...]:
        # With a function that is pickled by value; its `history` is the same object as `shared`.
        return _Histories, (*self._arguments, self.shared)

    def history_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> History:
        """Return the history of a call with these arguments."""
        if self._keyed is not None and self._key is not None:
            return self._history_for_key(self._keyed, self._key, args, kwargs)
        if self.per_object is not None and args:
            return self.per_object.for_object(args[0])
        return cast("History", self.shared)

    def _history_for_key(
        self, keyed: KeyedHistory, key: Callable[..., Hashable], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> History:
        try:
            return keyed.for_key(key(*args, **kwargs))
        except Exception:
            # A key function that fails, or returns an unhashable key, must not make the call fail.
            self._key_failures.error(
                "key", "key= of a bounded history failed; such calls are remembered under %r", NO_KEY
            )
            return keyed.for_key(NO_KEY)


class _CallRecorder:
    """One running call, and the history that its record is added to."""

    __slots__ = ("_history", "_started", "result")

    def __init__(self, history: History) -> None:
        self._history = history
        self._started = time.time()
        self.result: Any = None

    def keep(self, result: Any) -> None:
        """Keep the result of the call."""
        self.result = result

    def on_end(self, owner: Owner, error: BaseException | None) -> None:
        usage = current_usage(owner)
        self._history.append(
            CallRecord(
                started=self._started,
                duration_s=usage.duration_s,
                # A consumer that needs no more items closes the generator: that is not a failure.
                outcome="ok" if error is None or isinstance(error, GeneratorExit) else type(error).__name__,
                retained_bytes=usage.retained_bytes,
                peak_bytes=usage.peak_bytes,
                resident_delta_bytes=usage.resident_delta_bytes,
                exact=usage.exact,
                result=self.result,
            )
        )


class _RecordedCalls:
    """What is done for each call of one function: its record goes into the history for its arguments."""

    def __init__(self, name: str, meter: Meter, histories: _Histories, is_stacked: bool, keep_results: bool) -> None:
        self._options = CallOptions(name, "call", meter, is_stacked=is_stacked)
        self._histories = histories
        self._keep_results = keep_results

    def options_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallOptions:
        """Return options whose `on_end` adds the record."""
        recorder = _CallRecorder(self._histories.history_for(args, kwargs))
        common = self._options
        return CallOptions(
            common.name,
            common.kind,
            common.meter,
            is_stacked=common.is_stacked,
            on_end=recorder.on_end,
            on_result=recorder.keep if self._keep_results else None,
        )


def _summarise(records: Iterable[CallRecord]) -> HistorySummary:
    calls = list(records)
    durations = sorted(call.duration_s for call in calls)
    return HistorySummary(
        count=len(calls),
        failures=sum(call.outcome != "ok" for call in calls),
        mean_s=sum(durations) / len(durations) if durations else None,
        p50_s=_percentile(durations, 50),
        p95_s=_percentile(durations, 95),
        p99_s=_percentile(durations, 99),
        retained_bytes=sum(call.retained_bytes for call in calls),
    )


def _percentile(ordered: list[float], percent: int) -> float | None:
    # Nearest rank: the smallest value that at least `percent` percent of the values do not exceed (Hyndman and Fan,
    # type 1).
    if not ordered:
        return None
    rank = -(-len(ordered) * percent // 100)
    return ordered[rank - 1]
