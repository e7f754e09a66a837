"""`@bounded_history`: the last calls of a function, never more."""

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from memtools._records import record
from memtools.decorators._wrapping import (
    Decorated,
    Detour,
    Shape,
    is_descriptor,
    is_enabled,
    is_layered,
    name_of,
    over_descriptors,
    runner_for,
    shape_of,
)
from memtools.errors import ConfigError
from memtools.ledger import Meter, Owner, choose_meter
from memtools.ledger._ledger import current_usage
from memtools.scopes import CallOptions
from memtools.structures import BoundedList
from memtools.units import parse_count

# What is remembered of calls: one frozen record each, the newest ones, and their summary.


@record
class CallRecord:
    """One call that has ended.

    Attributes:
        started: when, in seconds of `time.time()`.
        duration_s: wall time in seconds.
        outcome: `"ok"`, or the name of the exception's type.
        retained_bytes: what it left alive, in bytes.
        peak_bytes: its highest live bytes.
        resident_delta_bytes: change of the whole process's resident memory.
        exact: False where others may have leaked into the figures.
        result: what it returned, only where the decorator was told `keep_results=True`.
    """

    started: float
    duration_s: float
    outcome: str
    retained_bytes: int
    peak_bytes: int
    resident_delta_bytes: int
    exact: bool
    result: Any = None  # Any: whatever the function returns


@record
class HistorySummary:
    """The remembered calls in numbers; durations in seconds, None where there are no calls.

    Attributes:
        count: how many calls are remembered.
        failures: how many of them did not end well.
        mean_s: mean duration.
        p50_s: the median duration.
        p95_s: the duration that 95 % of the calls did not exceed.
        p99_s: the duration that 99 % of the calls did not exceed.
        retained_bytes: the sum of what they left alive.
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
        return summarise(self[:])


def summarise(records: Iterable[CallRecord]) -> HistorySummary:
    """Return the summary of any records."""
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
    # Nearest rank: the smallest value that at least so many percent do not exceed (Hyndman and Fan, type 1).
    if not ordered:
        return None
    rank = -(-len(ordered) * percent // 100)
    return ordered[rank - 1]


# Where the history of a call is kept: one for the function, one per key, or one per object.
#
# Leaves to others: what is kept (`_call_records`), when (`_bounded_history`).

MAX_KEYS: Final = 1000


class KeyedHistory(Mapping[Hashable, History]):
    """One history per key, for the keys used last; 1,000 at most. Safe from any thread."""

    def __init__(self, make: Callable[[], History], *, max_keys: int = MAX_KEYS) -> None:
        self._make = make
        self._max_keys = max_keys
        self._lock = threading.RLock()
        self._by_key: OrderedDict[Hashable, History] = OrderedDict()

    def at(self, key: Hashable) -> History:
        """Return the history for `key`, a new one if need be; the key unused for longest may go for it."""
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
            return summarise(call for history in self._by_key.values() for call in history)

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

    By identity: objects that compare equal have histories of their own, and none has to be hashable.
    """

    def __init__(self, make: Callable[[], History], shared: History) -> None:
        self._make = make
        self._shared = shared
        self._by_id: dict[int, tuple[weakref.ref[Any], History]] = {}

    def at(self, instance: object) -> History:
        """Return the history of `instance`, a new one if need be.

        Objects that cannot be weakly referenced get the shared one: nobody would say when theirs can go.
        """
        key = id(instance)
        found = self._by_id.get(key)
        if found is not None and found[0]() is instance:
            return found[1]

        by_id = self._by_id
        try:
            reference = weakref.ref(instance, lambda gone: by_id.pop(key, None) if _is_at(by_id, key, gone) else None)
        except TypeError:
            return self._shared
        history = self._make()
        by_id[key] = (reference, history)
        return history

    def __len__(self) -> int:
        return len(self._by_id)


def _is_at(by_id: dict[int, tuple[weakref.ref[Any], History]], key: int, gone: weakref.ref[Any]) -> bool:
    # A new object may have the id of the one that is gone, and its history is in place already.
    found = by_id.get(key)
    return found is not None and found[0] is gone


P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
H = TypeVar("H", bound="History | KeyedHistory")
S = TypeVar("S")
T = TypeVar("T")

NO_KEY: Final = "<no key>"

_log = logging.getLogger("memtools.history")


class Recorded(Decorated[P, R_co], Generic[P, R_co, H]):
    """A function whose last calls are remembered: `f.history`."""

    def __init__(self, function: Callable[P, R_co], detour: Detour, history: H) -> None:
        super().__init__(function, detour)
        self._self_history = history

    @property
    def history(self) -> H:
        """The newest calls, oldest first; with `key=` a mapping from key to such a list."""
        return self._self_history

    if TYPE_CHECKING:  # how it binds, for type checkers; it binds as its base class does
        # A classmethod is to them a function that takes the class, and they do not let it bind: cast where it matters.
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> "Recorded[P, R_co, H]": ...
        @overload
        def __get__(
            self: "Recorded[Concatenate[S, Q], R, H]", instance: S, owner: type | None = None
        ) -> "Recorded[Q, R, H]": ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


class _RecordedPerObject(Recorded[P, R_co, History]):
    """A function that, bound to an object, has that object's history."""

    def __init__(self, function: Callable[P, R_co], detour: Detour, shared: History, places: ObjectHistories) -> None:
        super().__init__(function, detour, shared)
        self._self_places = places

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        bound: Callable[..., Any] = MethodType(self, instance)
        return Recorded(bound, _through, self._self_places.at(instance))


class _HistoryDecorator(Protocol[H]):
    @overload
    def __call__(self, function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a staticmethod can be called, too: it stands first
        self, function: "staticmethod[P, R]", /
    ) -> "staticmethod[P, R]": ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Recorded[P, R, H]: ...


@overload
def bounded_history(function: "classmethod[T, P, R]", /) -> "classmethod[T, P, R]": ...
@overload
def bounded_history(  # type: ignore[overload-overlap]  # as above
    function: "staticmethod[P, R]", /
) -> "staticmethod[P, R]": ...
@overload
def bounded_history(function: Callable[P, R], /) -> Recorded[P, R, History]: ...
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
    """Remember the last calls of a function: when, how long, how they ended, what they used.

    Bare or called. Arguments are never kept, results only on request.

    ```python
    @bounded_history(100)
    def tick() -> None: ...

    tick()
    assert len(tick.history) == 1
    print(tick.history.summary())
    ```

    Args:
        maxlen: the most calls to remember; where the decorator is used bare, the function.
        keep: how many are left when there are too many, see `BoundedList`; by default `maxlen`.
        key: gives a key from the arguments of a call; calls are then remembered for each of up to 1,000 keys. Where it
            fails, the call is remembered under `"<no key>"`, and the failure is logged once.
        keep_results: whether to keep what plain and coroutine functions return.
        per_instance: for methods: one history per object, for as long as the object lives: `obj.method.history`.
            Objects that cannot be weakly referenced share the history of the class.
        meter: `"native"`, `"tracemalloc"` or `"rss"`; by default `MEMTOOLS_METER`, else `"native"` where it was built,
            else `"rss"`; read when decorating.
        enabled: False returns the bare function; by default `MEMTOOLS_ENABLED`, else True.

    Raises:
        ConfigError: when decorating, for an argument that makes no sense.
    """
    given: object = maxlen
    is_bare = callable(given) or is_descriptor(given)
    make = _maker(1000 if is_bare else given, keep)
    if key is not None and not callable(key):
        raise ConfigError("key", key, "a callable that takes the arguments of a call and gives a key")
    if key is not None and per_instance:
        raise ConfigError("per_instance", per_instance, "either key= or per_instance=, not both")
    chosen = choose_meter(meter)

    def decorate(function: Any) -> Any:
        shape = shape_of(function)
        if keep_results and shape not in ("plain", "coroutine"):
            raise ConfigError("keep_results", keep_results, f"False for a {shape}: it yields, and items are not kept")
        places = _Places(make, key, per_instance)
        if not is_enabled(enabled):
            return _bare(function, places.shared)
        detour = _recording(function, chosen, places, keeps_result=keep_results)
        if places.per_object is not None:
            return _RecordedPerObject(function, detour, cast("History", places.shared), places.per_object)
        return Recorded(function, detour, places.shared)

    if is_bare:
        return over_descriptors(decorate)(maxlen)
    return over_descriptors(decorate)


class _Places:
    """Where the calls of one function go."""

    def __init__(self, make: Callable[[], History], key: Callable[..., Hashable] | None, per_instance: bool) -> None:
        self._key = key
        self._complained = False
        self.keyed = KeyedHistory(make) if key is not None else None
        everything = make()
        self.per_object = ObjectHistories(make, everything) if per_instance else None
        self.shared: History | KeyedHistory = self.keyed if self.keyed is not None else everything

    def place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> History:
        if self.keyed is not None and self._key is not None:
            return self._keyed_place(self.keyed, self._key, args, kwargs)
        if self.per_object is not None and args:
            return self.per_object.at(args[0])
        return cast("History", self.shared)

    def _keyed_place(
        self, keyed: KeyedHistory, key: Callable[..., Hashable], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> History:
        try:
            return keyed.at(key(*args, **kwargs))
        except Exception:
            # The call that is watched goes on, whatever is wrong with the key.
            if not self._complained:
                self._complained = True
                _log.exception("key= of a bounded history failed; such calls are remembered under %r", NO_KEY)
            return keyed.at(NO_KEY)


class _Recording:
    """One running call, and the history that it goes to."""

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
                # A consumer that has had enough closes the generator, which is how those end well.
                outcome="ok" if error is None or isinstance(error, GeneratorExit) else type(error).__name__,
                retained_bytes=usage.retained_bytes,
                peak_bytes=usage.peak_bytes,
                resident_delta_bytes=usage.resident_delta_bytes,
                exact=usage.exact,
                result=self.result,
            )
        )


def _recording(function: Callable[..., Any], meter: Meter, places: _Places, *, keeps_result: bool) -> Detour:
    shape = shape_of(function)
    run, name, layered = runner_for(shape), name_of(function), is_layered(function)

    def detour(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recording = _Recording(places.place(args, kwargs))
        plan = CallOptions(name, "call", meter, is_layered=layered, on_end=recording.on_end)
        observed = _keeping(shape, function, recording) if keeps_result else function
        return run(plan, observed, args, kwargs)

    return detour


def _keeping(shape: Shape, function: Callable[..., Any], recording: _Recording) -> Callable[..., Any]:
    if shape == "coroutine":

        async def kept_async(*args: Any, **kwargs: Any) -> Any:
            recording.result = await function(*args, **kwargs)
            return recording.result

        return kept_async

    def kept(*args: Any, **kwargs: Any) -> Any:
        recording.result = function(*args, **kwargs)
        return recording.result

    return kept


def _maker(maxlen: object, keep: int | None) -> Callable[[], History]:
    maxlen = parse_count(maxlen, name="maxlen")
    History(maxlen=maxlen, keep=keep, shrinkable=False)  # refuses a bad `keep` now, not at the first call
    return lambda: History(maxlen=maxlen, keep=keep)


def _through(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _bare(function: Any, history: History | KeyedHistory) -> Any:
    with suppress(AttributeError):  # a builtin has no room for it
        function.history = history  # code that reads it finds it empty
    return function
