"""OpenTelemetry instruments (extra `otel`).

They use the API only; readers, views and exporters belong to the SDK, which is not imported here.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Final, Self
from weakref import ref

from memtools._forks import register_object_after_fork
from memtools.errors import MissingExtraError
from memtools.exporters._aggregates import MAX_NAMES, Aggregates, Labels, Snapshot
from memtools.exporters._catalogue import FAMILIES, GROWTH, GROWTH_BOUNDS, Family
from memtools.units import parse_count

try:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter_provider
except ImportError as _missing:
    raise MissingExtraError("opentelemetry-api", "otel") from _missing

__all__ = ["MemtoolsInstruments"]

_UNITS: Final = {"bytes": "By", "seconds": "s", "": ""}


class MemtoolsInstruments:
    """Instruments for scopes, budgets, tasks, monitors and structures, observed whenever a reader collects.

    Names are `memtools.scope.retained` and so on, attributes `kind`, `name`, `type`, `to` and `scope`. What each scope,
    call or task left alive is the histogram `memtools.scope.growth` in bytes, with buckets from 1 KiB to 1 GiB.

    Args:
        provider: makes the instruments, by default the global one, which may be set later.
        max_names: how many names become attributes; later ones share `<other>`, which is logged once.

    Raises:
        ConfigError: for less than one name.

    OpenTelemetry cannot remove an instrument, and makes each only once: a provider has one set of them, however many
    objects of this class are made for it, one after the other (a lifespan that runs twice) or at the same time. The set
    reports as long as one of them is not closed, with the largest `max_names`, and each figure once; its counters go on
    where they were. Several providers have a set each.

    Threads: readers may collect in any thread. Growth is recorded when a reader collects, or, some hundred at a time,
    in the thread where a scope ends.
    """

    def __init__(self, provider: MeterProvider | None = None, *, max_names: int = MAX_NAMES) -> None:
        parse_count(max_names, name="max_names")
        self._is_closed = False
        self._set = _sets.open(get_meter_provider() if provider is None else provider, max_names)

    def close(self) -> None:
        """Report nothing more by this object; a second call does nothing."""
        with _sets.lock:
            if not self._is_closed:
                self._is_closed = True
                self._set.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _InstrumentSet:
    """The instruments of one provider.

    Threads: `open` and `close` are called under the lock of the sets.
    """

    def __init__(self, provider: MeterProvider, max_names: int) -> None:
        meter = provider.get_meter("memtools")
        self._histogram = meter.create_histogram(
            f"memtools.{GROWTH.name}", "By", GROWTH.description, explicit_bucket_boundaries_advisory=list(GROWTH_BOUNDS)
        )
        self._aggregates = Aggregates(max_names, on_growth=self._record, may_count=_is_outside_telemetry)
        self._lock = threading.Lock()
        self._snapshot = Snapshot({}, {})
        self._unread: set[str] = set()
        self._users = 0
        self._successor: _InstrumentSet | None = None
        for family in FAMILIES:
            self._instrument(meter, family)
        register_object_after_fork(self, _InstrumentSet._renew_lock)

    def open(self) -> None:
        """Report for one more user."""
        self._users += 1
        self._aggregates.subscribe()

    def close(self) -> None:
        """Report for one user less, and nothing after the last one."""
        if self._successor is not None:
            self._successor.close()
            return
        self._users = max(0, self._users - 1)
        if not self._users:
            self._aggregates.close()

    def abandon(self) -> None:
        """Report nothing any more, whether it is in use or not: no reader is left."""
        self._users = 0
        self._aggregates.close()

    def allow_names(self, max_names: int) -> None:
        """Give labels of their own to more names, if it is more."""
        self._aggregates.allow_names(max_names)

    def hand_over(self, successor: "_InstrumentSet") -> None:
        """Leave the users to the set whose instruments the provider has kept."""
        for _ in range(self._users):
            successor.open()
        self._users, self._successor = 0, successor
        self._aggregates.close()

    def _instrument(self, meter: Meter, family: Family) -> None:
        create = meter.create_observable_counter if family.type == "counter" else meter.create_observable_gauge
        create(f"memtools.{family.name}", [partial(self._observe, family)], _UNITS[family.unit], family.description)

    def _observe(self, family: Family, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002  # the signature of the API
        _sets.settle()
        if not self._users:
            return ()
        samples = self._present(family).samples.get(family.name, {})
        return [Observation(value, _attributes(family, labels)) for labels, value in samples.items()]

    def _present(self, family: Family) -> Snapshot:
        # A reader observes one instrument after the other; an instrument that is observed again begins a new round.
        with self._lock:
            if family.name not in self._unread:
                self._snapshot = self._aggregates.snapshot()
                self._unread = {each.name for each in FAMILIES}
            self._unread.discard(family.name)
            return self._snapshot

    def _record(self, labels: Labels, grown_bytes: int) -> None:
        self._histogram.record(grown_bytes, _attributes(GROWTH, labels))

    def _renew_lock(self) -> None:
        # In a forked child: a thread of the parent may have been collecting.
        self._lock = threading.Lock()


class _InstrumentSets:
    """The sets of instruments, by provider.

    Until the global provider is set the API returns a stand-in, whose instruments become those of the provider then. A
    second object that is made after that is given the provider itself; it has to find the set of the stand-in.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a finaliser may close an object in the middle of a call
        # Apart from the other one: the SDK calls back under locks that it also takes to make an instrument.
        self._making = threading.RLock()
        self._by_id: dict[int, tuple[Callable[[], object], _InstrumentSet]] = {}
        self._stand_in: _InstrumentSet | None = None
        register_object_after_fork(self, _InstrumentSets._renew_locks)

    def open(self, provider: MeterProvider, max_names: int) -> _InstrumentSet:
        """Return the set of `provider`, with one more user."""
        with self._making:
            self.settle()
            found = self._find(provider)
            if found is not None:
                found.allow_names(max_names)
            else:
                found = _InstrumentSet(provider, max_names)
            with self.lock:
                self._add(provider, found)
                if _is_stand_in(provider):
                    self._stand_in = found
                found.open()
            return found

    def settle(self) -> None:
        """Once the global provider is set, let the set of its stand-in be its own, unless it has one already."""
        stand_in = self._stand_in
        if stand_in is None or _is_stand_in(provider := get_meter_provider()):
            return
        with self.lock:
            if self._stand_in is None:
                return  # another thread was faster
            self._stand_in = None
            known = self._find(provider)
            if known is None:
                self._add(provider, stand_in)
            elif known is not stand_in:
                stand_in.hand_over(known)

    def _find(self, provider: MeterProvider) -> _InstrumentSet | None:
        get, found = self._by_id.get(id(provider), (bool, None))
        return found if get() is provider else None

    def _add(self, provider: MeterProvider, made: _InstrumentSet) -> None:
        for key, (get, former) in list(self._by_id.items()):
            if get() is None:  # its provider was freed
                del self._by_id[key]
                former.abandon()
        try:
            self._by_id[id(provider)] = (ref(provider), made)
        except TypeError:  # of a class with slots
            self._by_id[id(provider)] = (lambda: provider, made)

    def _renew_locks(self) -> None:
        self.lock = threading.RLock()
        self._making = threading.RLock()


_sets = _InstrumentSets()


def _is_stand_in(provider: MeterProvider) -> bool:
    # By its name, which is private.
    return type(provider).__name__ == "_ProxyMeterProvider"


def _attributes(family: Family, labels: Labels) -> dict[str, str]:
    return dict(zip(family.labels, labels, strict=True))


def _is_outside_telemetry() -> bool:
    # The SDK records under locks that one thread cannot take twice. A scope may end by a finaliser in the middle of
    # that; its growth then waits for the next event. Checked once in some hundred events.
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # CPython's documented way to the caller
    while frame.f_back is not None:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__", "")).startswith("opentelemetry.sdk.metrics"):
            return False
    return True
