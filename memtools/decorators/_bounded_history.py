"""`@bounded_history`: remember the last calls of a function."""

import logging
import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar, cast, overload

from memtools._records import record
from memtools._safe_calls import RateLimitedLogger
from memtools._suggestions import suggest_arguments
from memtools.decorators._decoration import (
    CallKind,
    Wrapper,
    accept_descriptors,
    call_kind,
    is_descriptor,
    is_enabled,
    report_name,
    runner_for,
    with_attribute,
)
from memtools.errors import ConfigError
from memtools.ledger import Meter, Owner, choose_meter
from memtools.ledger._ledger import current_usage
from memtools.scopes._calls import CallOptions
from memtools.structures import BoundedList
from memtools.units import parse_count

if TYPE_CHECKING:  # it loads wrapt
    from memtools.decorators._wrapping import Recorded

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
        self._by_id: dict[int, tuple[weakref.ref[Any], History]] = {}

    def for_object(self, instance: object) -> History:
        """Return the history of `instance`, a new one at the first call."""
        key = id(instance)
        found = self._by_id.get(key)
        if found is not None and found[0]() is instance:
            return found[1]

        by_id = self._by_id

        def remove(dead: "weakref.ref[Any]") -> None:
            # A new object may have got the id of the dead one, and its history is in the dict already.
            current = by_id.get(key)
            if current is not None and current[0] is dead:
                by_id.pop(key, None)

        try:
            reference = weakref.ref(instance, remove)
        except TypeError:
            return self._shared
        history = self._make()
        by_id[key] = (reference, history)
        return history

    def __len__(self) -> int:
        return len(self._by_id)


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

        from memtools.decorators._wrapping import Recorded, RecordedPerObject, is_stacked  # loads wrapt

        wrapper = _recording_wrapper(function, kind, chosen, histories, is_stacked(function), keep_results)
        if histories.per_object is not None:
            return RecordedPerObject(function, wrapper, histories.shared, histories.per_object.for_object)
        return Recorded(function, wrapper, histories.shared)

    if is_bare:
        return accept_descriptors(decorate)(maxlen)
    return accept_descriptors(decorate)


def _history_factory(maxlen: object, keep: int | None) -> Callable[[], History]:
    maxlen = parse_count(maxlen, name="maxlen")
    History(maxlen=maxlen, keep=keep, shrinkable=False)  # refuses an invalid `keep` now, not at the first call
    return lambda: History(maxlen=maxlen, keep=keep)


class _Histories:
    """The histories of one decorated function: one for the function, one per key, or one per object."""

    def __init__(self, make: Callable[[], History], key: Callable[..., Hashable] | None, per_instance: bool) -> None:
        self._key = key
        self._key_failures = RateLimitedLogger(_log, interval_s=math.inf)  # logs the first failure only
        self._keyed = KeyedHistory(make) if key is not None else None
        of_function = make()
        self.per_object = ObjectHistories(make, of_function) if per_instance else None
        self.shared: History | KeyedHistory = self._keyed if self._keyed is not None else of_function

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


def _recording_wrapper(
    function: Callable[..., Any],
    kind: CallKind,
    meter: Meter,
    histories: _Histories,
    is_stacked: bool,
    keep_results: bool,
) -> Wrapper:
    run, name = runner_for(kind), report_name(function)

    def wrapper(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recorder = _CallRecorder(histories.history_for(args, kwargs))
        options = CallOptions(name, "call", meter, is_stacked=is_stacked, on_end=recorder.on_end)
        called = _keeping_result(kind, function, recorder) if keep_results else function
        return run(options, called, args, kwargs)

    return wrapper


def _keeping_result(kind: CallKind, function: Callable[..., Any], recorder: _CallRecorder) -> Callable[..., Any]:
    if kind == "coroutine":

        async def keep_async(*args: Any, **kwargs: Any) -> Any:
            recorder.result = await function(*args, **kwargs)
            return recorder.result

        return keep_async

    def keep(*args: Any, **kwargs: Any) -> Any:
        recorder.result = function(*args, **kwargs)
        return recorder.result

    return keep


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
