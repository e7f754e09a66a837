"""OpenTelemetry instruments (extra `otel`).

They use the API only; readers, views and exporters belong to the SDK, which is not imported here.
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
    """Instruments for scopes, budgets, tasks, monitors and structures, observed whenever a reader collects.

    Names are `memtools.scope.retained` and so on, attributes `kind`, `name`, `type`, `to` and `scope`. What each scope,
    call or task left alive is the histogram `memtools.scope.growth` in bytes, with buckets from 1 KiB to 1 GiB.

    Args:
        provider: makes the instruments, by default the global one, which may be set later.
        max_names: how many names become attributes; later ones share `<other>`, which is logged once.

    Raises:
        ConfigError: for less than one name.

    OpenTelemetry cannot remove an instrument: after `close()`, or the end of a `with`, they report nothing.

    Threads: readers may collect in any thread. Growth is recorded when a reader collects, or, some hundred at a time,
    in the thread where a scope ends.
    """

    def __init__(self, provider: MeterProvider | None = None, *, max_names: int = MAX_NAMES) -> None:
        meter = (provider or get_meter_provider()).get_meter("memtools")
        self._histogram = meter.create_histogram(
            f"memtools.{GROWTH.name}", "By", GROWTH.description, explicit_bucket_boundaries_advisory=list(GROWTH_BOUNDS)
        )
        self._aggregates = Aggregates(max_names, on_growth=self._record, may_count=_is_outside_telemetry)
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

    def _observe(self, family: Family, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002  # the signature of the API
        if self._is_closed:
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
