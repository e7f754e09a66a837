"""Show OpenTelemetry what memtools knows: instruments by its API, whichever SDK stands behind it (extra `otel`).

Covers: observable instruments for what is added up, a histogram for the growth. Leaves to others: which metrics there
are (`_catalogue`), adding them up (`_aggregates`), readers, views and exporters (the SDK, which is not imported here).
"""

import sys
import threading
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Final, Self

from memtools.errors import MissingExtraError
from memtools.exporters._aggregates import MAX_NAMES, Aggregates, Labels, Snapshot
from memtools.exporters._catalogue import FAMILIES, GROWTH, GROWTH_BOUNDS, Family

try:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter_provider
except ImportError as _missing:
    raise MissingExtraError("opentelemetry-api", "otel") from _missing

__all__ = ["MemtoolsInstruments"]

_UNITS: Final = {"bytes": "By", "seconds": "s", "": ""}


class MemtoolsInstruments:
    """Instruments that tell of scopes, budgets, tasks, monitors and structures whenever a reader collects.

    Names are `memtools.scope.retained` and so on, attributes `kind`, `name`, `type`, `to` and `scope`. What each scope,
    call or task left alive is the histogram `memtools.scope.growth` in bytes, with buckets from 1 KiB to 1 GiB.

    Args:
        provider: who makes the instruments, by default the global one, which may be set later.
        most_names: how many names become attributes; later ones share `<other>`, which is warned of once.

    Raises:
        ConfigError: for less than one name.

    OpenTelemetry has no way to take an instrument back: after `close()`, or the end of a `with`, they report nothing.

    Threads: readers may collect in any. Growth is recorded when a reader collects, or, some hundred at a time, in the
    thread where a scope ends.
    """

    def __init__(self, provider: MeterProvider | None = None, *, most_names: int = MAX_NAMES) -> None:
        meter = (provider or get_meter_provider()).get_meter("memtools")
        self._histogram = meter.create_histogram(
            f"memtools.{GROWTH.name}", "By", GROWTH.description, explicit_bucket_boundaries_advisory=list(GROWTH_BOUNDS)
        )
        self._aggregates = Aggregates(most_names, grown=self._record, may_count=_is_outside_telemetry)
        self._lock = threading.Lock()
        self._snapshot = Snapshot({}, {})
        self._unread: set[str] = set()
        self._is_closed = False
        for family in FAMILIES:
            self._instrument(meter, family)
        self._aggregates.subscribe()

    def close(self) -> None:
        """Report nothing more; a second call does nothing."""
        self._is_closed = True
        self._aggregates.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _instrument(self, meter: Meter, family: Family) -> None:
        create = meter.create_observable_counter if family.type == "counter" else meter.create_observable_gauge
        create(f"memtools.{family.name}", [partial(self._observe, family)], _UNITS[family.unit], family.description)

    def _observe(self, family: Family, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002  # theirs
        if self._is_closed:
            return ()
        samples = self._present(family).samples.get(family.name, {})
        return [Observation(value, _attributes(family, labels)) for labels, value in samples.items()]

    def _present(self, family: Family) -> Snapshot:
        # A reader asks one instrument after the other. Who is asked for a second time is in a new round.
        with self._lock:
            if family.name not in self._unread:
                self._snapshot = self._aggregates.snapshot()
                self._unread = {each.name for each in FAMILIES}
            self._unread.discard(family.name)
            return self._snapshot

    def _record(self, labels: Labels, grown_bytes: int) -> None:
        self._histogram.record(grown_bytes, _attributes(GROWTH, labels))


def _attributes(family: Family, labels: Labels) -> dict[str, str]:
    return dict(zip(family.labels, labels, strict=True))


def _is_outside_telemetry() -> bool:
    # The SDK records under locks that one thread cannot take twice. A scope may end by a finaliser in the middle of
    # that; its growth then waits for the next event. Looked at once in some hundred events.
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # CPython's documented way to the caller
    while frame.f_back is not None:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__", "")).startswith("opentelemetry.sdk.metrics"):
            return False
    return True
