"""The accounts of marked tests: options, repeated runs, peaks, leftovers, and the summary.

Independent of pytest: only the plugin module `pytest_memtools` imports it.
"""

import gc
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from time import perf_counter, sleep  # names of this module: a test may have replaced those of `time`
from types import TracebackType
from typing import Any, Final, TypeVar

from memtools._records import record
from memtools.analysis import Verdict
from memtools.errors import ConfigError, LeakError
from memtools.heap import why_alive
from memtools.ledger import Meter, Owner, Usage
from memtools.ledger._ledger import close_owner, current_usage, open_owner
from memtools.scopes import memory_scope
from memtools.testing._leak_report import HolderSearch, LeakReport, build_report
from memtools.testing._leak_search import LeakSearch, SearchLimits, default_test_meter, metrics_of
from memtools.testing._leftovers import Leftovers
from memtools.units import format_size, parse_count, parse_size


class MeasuredBlock:
    """The account of one test's body, opened and closed from two hooks of the test runner.

    The runner calls the body from a generator, so that a `with memory_scope(...)` there would be tracked through the
    steps of that generator. Here the thread is charged from `open` to `end`, including event loops that run inside.

    Args:
        name: the name of the test.
        meter: counts the bytes.
    """

    def __init__(self, name: str, meter: Meter) -> None:
        self._name = name
        self._meter = meter
        self._owner: Owner | None = None

    def open(self) -> Owner:
        """Start to charge this thread to the test; after the end, start a new account."""
        self._owner = open_owner(self._name, "scope", meter=self._meter)
        # Runners of coroutine tests have a context that is older than the test.
        self._meter.charge_unowned(self._owner)
        return self._owner

    def end(self, *, failed: bool = False) -> None:
        """Close the account; nothing happens before it was opened and after it was closed."""
        if self._owner is not None and not self._owner.ended:
            close_owner(self._owner, failed=failed)

    @property
    def usage(self) -> Usage | None:
        """What the body used so far, or in all; None before `open`."""
        return current_usage(self._owner) if self._owner is not None else None

    @property
    def current_bytes(self) -> int:
        """Live bytes of the body."""
        return self._owner.live_bytes if self._owner is not None else 0

    @property
    def peak_bytes(self) -> int:
        """The highest live bytes of the body so far."""
        return self._owner.peak_bytes if self._owner is not None else 0


T = TypeVar("T")

_CHECK_S: Final = 0.01
_CHECKS: Final = 50
_CHECKS_S: Final = 0.5


# What the test runner keeps beyond the test, each with a name.
KeptByRunner = Callable[[], Iterable[tuple[str, object]]]


class CollectedObjects:
    """Objects that must be garbage at the end of a test.

    Args:
        kept: returns what the test runner keeps beyond the test: such an object is refused.
    """

    def __init__(self, kept: KeptByRunner = tuple) -> None:
        self._kept = kept
        self._expected: list[weakref.ref[Any]] = []

    def __call__(self, target: T) -> T:
        """Expect `target` to be garbage when the test has ended; return it.

        Raises:
            ConfigError: if it cannot be weakly referenced, or is kept beyond the test in any case.
        """
        __tracebackhide__ = True
        for name, value in self._kept():
            if value is target:
                raise ConfigError("target", target, f"an object that ends with the test: pytest keeps {name}")
        try:
            self._expected.append(weakref.ref(target))
        except TypeError:
            accepted = "an object that can be weakly referenced (with slots: name `__weakref__` among them)"
            raise ConfigError("target", target, accepted) from None
        return target

    def clear(self) -> None:
        """Expect nothing any more: the traceback of a failed test holds its objects."""
        self._expected.clear()

    def check(self) -> None:
        """Collect garbage, and fail if an object is still alive half a second later: a thread may be about to end.

        Raises:
            LeakError: one line for each object that is alive, with its holders.
        """
        __tracebackhide__ = True
        gc.collect()
        began = perf_counter()
        for _ in range(_CHECKS):
            if not self._is_any_alive() or perf_counter() - began > _CHECKS_S:
                break
            sleep(_CHECK_S)
            gc.collect()
        lines = [line for line in map(_holder_line, self._expected) if line]
        self._expected.clear()
        if lines:
            raise LeakError("what was expected to be collected", tuple(lines))

    def _is_any_alive(self) -> bool:
        return any(reference() is not None for reference in self._expected)


def _holder_line(reference: weakref.ref[Any]) -> str:
    # A plain argument: a variable of a comprehension would be a holder of the object itself.
    return "" if reference() is None else str(why_alive(reference())).splitlines()[0]


MarkerArguments = tuple[Sequence[object], Mapping[str, object]]

_ACCEPTED: Final = {
    "memory_growth": ("max_bytes", "repeats", "warmup"),
    "memory_peak": ("max_bytes",),
    "no_leaked_tasks": (),
}
# Figures of the whole process: what pytest itself allocates between two runs would count as the test's.
_PROCESS_WIDE_METRICS: Final = ("blocks", "tasks")
_MIN_NATIVE_BYTES: Final = 4096
_MIN_DURATION_S: Final = 1.0
_TIMEOUT_S: Final = 30.0


@record
class MarkerOptions:
    """The options of a marked test.

    Attributes:
        growth_bytes: bytes that a run may leave behind, None for no limit.
        repeats: runs that are measured.
        warmup: runs before the first measurement.
        peak_bytes: bytes that the body may have alive at once, None for no limit.
        no_leftovers: whether the body must leave no task, thread or descriptor.
        meter: counts the bytes.
    """

    growth_bytes: int | None
    repeats: int
    warmup: int
    peak_bytes: int | None
    no_leftovers: bool
    meter: Meter


def parse_options(
    markers: Mapping[str, MarkerArguments], settings: Mapping[str, Any], meter: str | None
) -> MarkerOptions:
    """Return the options of a test: from its markers, and where these say nothing from the settings of the suite.

    Args:
        markers: the arguments of each marker, by its name.
        settings: the suite's settings by name, as text.
        meter: the name of a meter, None for the most exact one.

    Raises:
        ConfigError: for an invalid value, or an argument that a marker does not have.
    """
    named = {name: _by_name(name, *asked) for name, asked in markers.items()}
    growth = named.get("memory_growth")
    growth_bytes = growth.get("max_bytes", "1 KiB") if growth is not None else settings.get("memtools_growth_max_bytes")
    peak_bytes = (
        named["memory_peak"].get("max_bytes") if "memory_peak" in named else settings.get("memtools_peak_max_bytes")
    )
    if "memory_peak" in named and peak_bytes is None:
        raise ConfigError("max_bytes", None, "memory_peak(max_bytes=...) with a size such as '50 MiB'")
    return MarkerOptions(
        None if growth_bytes is None else parse_size(growth_bytes, name="max_bytes"),
        _count("repeats", growth, settings, default=5, minimum=3),
        _count("warmup", growth, settings, default=2, minimum=0),
        None if peak_bytes is None else parse_size(peak_bytes, name="max_bytes"),
        "no_leaked_tasks" in named or bool(settings.get("memtools_no_leaked_tasks")),
        default_test_meter(meter),
    )


def _by_name(marker: str, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    accepted = _ACCEPTED[marker]
    if len(args) > len(accepted) or set(kwargs) - set(accepted):
        unknown = ", ".join([*map(repr, args[len(accepted) :]), *sorted(set(kwargs) - set(accepted))])
        raise ConfigError(marker, unknown, f"{', '.join(accepted) or 'no argument'}")
    return {**dict(zip(accepted, args, strict=False)), **kwargs}


def _count(
    name: str, marker: Mapping[str, object] | None, settings: Mapping[str, Any], *, default: int, minimum: int
) -> int:
    if marker is not None and name in marker:
        return parse_count(marker[name], name=name, minimum=minimum)
    text = settings.get(f"memtools_{name}")
    if text is None:
        return default
    value: object = int(text) if str(text).strip().isdecimal() else text
    return parse_count(value, name=f"memtools_{name}", minimum=minimum)


class MarkedTest:
    """A test with an account.

    Args:
        name: the name of the test.
        options: from markers and settings.
        module: the name of the test's module.
    """

    def __init__(self, name: str, options: MarkerOptions, module: str = "") -> None:
        self.name = name
        self._module = module
        self._options = options
        self._body = MeasuredBlock(name, options.meter)
        self._runs = MeasuredBlock(name, options.meter)
        self._leftovers: Leftovers | None = None
        self._is_in_body = False
        self._search: LeakSearch | None = None
        self._report: LeakReport | None = None
        self._probes: list[Usage] = []

    @property
    def is_repeated(self) -> bool:
        """Whether it has to run repeatedly."""
        return self._options.growth_bytes is not None

    @property
    def meter_name(self) -> str:
        """The name of the meter."""
        return self._options.meter.name

    @property
    def usage(self) -> Usage | None:
        """What the body used so far, or in all."""
        return self._body.usage

    @property
    def current_bytes(self) -> int:
        """Live bytes of the body."""
        return self._body.current_bytes

    @property
    def peak_bytes(self) -> int:
        """The highest live bytes of the body so far."""
        return self._body.peak_bytes

    def run_counts(self) -> Generator[int, None, None]:
        """Yield how many runs to make next, until it is clear whether they leave memory behind."""
        limit = self._options.growth_bytes or 0
        started = time.perf_counter()
        owner = self._runs.open()
        try:
            metrics = [
                metric if metric.name != "native bytes" else metric.with_tolerance(max(limit, _MIN_NATIVE_BYTES))
                for metric in metrics_of(owner, float(limit))
                if metric.name not in _PROCESS_WIDE_METRICS
            ]
            limits = SearchLimits(self._options.repeats, 1, self._options.warmup, _MIN_DURATION_S, _TIMEOUT_S)
            self._search = LeakSearch(metrics, limits)
            yield from self._search.call_counts()
        finally:
            self._runs.end()
        holders = None if self._search.is_clean else HolderSearch(self._options.repeats)
        if holders is not None:
            yield from holders.call_counts()
        spent = time.perf_counter() - started
        self._report = build_report(self.name, self._search, holders, self._options.meter.name, spent)

    def abort(self) -> None:
        """Close the accounts: a run has failed, and its own report says why."""
        self._report = None
        self._body.end(failed=True)
        self._runs.end(failed=True)

    def growth_failure(self) -> str:
        """Return what grew and what holds it; empty if nothing grows."""
        if self._report is None or self._report.answer is not Verdict.LEAK:
            return ""
        head = f"{self.name} leaves more than {format_size(self._options.growth_bytes or 0)} behind with each run:"
        return "\n  ".join((head, *self._report.lines()))

    def begin_body(self) -> None:
        """Open the account of the body."""
        self._probes.clear()
        if self._options.no_leftovers:
            # Without a limit for the peak only: recorded origins are live bytes of the body.
            self._leftovers = Leftovers(self._module, name_origins=self._options.peak_bytes is None)
        self._is_in_body = True
        self._body.open()

    @property
    def needs_no_leftovers(self) -> bool:
        """Whether the body must leave nothing behind."""
        return self._options.no_leftovers

    @property
    def is_in_body(self) -> bool:
        """Whether the body runs now, and must leave nothing behind."""
        return self._is_in_body and self.needs_no_leftovers

    async def wait_for_tasks(self) -> None:
        """Let new tasks end, and record those that do not, while their loop exists."""
        if self._leftovers is not None:
            await self._leftovers.wait_for_tasks()

    def before_fixture(self) -> Leftovers:
        """Return what there is before a fixture is set up from inside the body."""
        return Leftovers(self._module)

    def after_fixture(self, before: Leftovers) -> None:
        """Count what the fixture has opened as if it had been there before the body: its own end closes it."""
        if self._leftovers is not None:
            self._leftovers.adopt(before)

    def end_body(self, *, failed: bool) -> None:
        """Close the account of the body."""
        self._is_in_body = False
        self._body.end(failed=failed)
        if self._leftovers is not None:
            self._leftovers.end_body()

    def body_failure(self) -> str:
        """Return which limit the body exceeded, or what it left behind; empty if nothing."""
        usage = self._body.usage
        limit = self._options.peak_bytes
        if usage is not None and limit is not None and usage.peak_bytes > limit:
            doubt = "" if usage.exact else f", {usage.note}"
            peak = format_size(usage.peak_bytes)
            return f"{self.name} had {peak} alive at once, max_bytes {format_size(limit)} ({usage.meter} meter{doubt})"
        left = self._leftovers.found() if self._leftovers is not None else ()
        return "\n  ".join((f"{self.name} leaves behind:", *left)) if left else ""

    def add_probe(self, usage: Usage) -> None:
        """Add what a part of the test used to the summary."""
        self._probes.append(usage)

    def properties(self) -> list[tuple[str, object]]:
        """Return the figures for the summary, as (`"memtools"`, what JSON can hold)."""
        usage = self._body.usage
        found: dict[str, object] = {"test": self.name, "meter": self._options.meter.name, "parts": [
            {"name": part.name, "peak_bytes": part.peak_bytes, "retained_bytes": part.retained_bytes}
            for part in self._probes
        ]}  # fmt: skip
        if usage is not None:
            found |= {"peak_bytes": usage.peak_bytes, "retained_bytes": usage.retained_bytes, "exact": usage.exact}
        if self._report is not None:
            (counted,) = (one for one in self._report.findings if one.metric == "bytes")
            found |= {
                "runs": self._report.calls,
                "growth_per_run_bytes": round(counted.per_call, 1),
                "answer": self._report.answer.value,
                "max_bytes": self._options.growth_bytes,
                "lines": list(self._report.lines()),
            }
        return [("memtools", found)]


class ProbeScope(memory_scope):
    """A scope for a part of a test; its figures go into the summary."""

    __slots__ = ("_marked",)

    def __init__(self, marked: MarkedTest, name: str) -> None:
        super().__init__(name, meter=marked.meter_name)
        self._marked = marked

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._marked.add_probe(self.usage)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        self._marked.add_probe(self.usage)


Figures = Mapping[str, Any]  # Any: what JSON can hold


def summary_lines(results: Sequence[Figures]) -> list[str]:
    """Return a table, the largest peak first, the parts of a test below it."""
    rows = [row for figures in sorted(results, key=_peak, reverse=True) for row in _rows(figures)]
    head = ("test", "peak", "kept", "per run", "runs")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, *rows)
    ]


def _rows(figures: Figures) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (str(figures["test"]), _size(figures, "peak_bytes"), _size(figures, "retained_bytes"), _verdict(figures),
         str(figures.get("runs", "")))
    ]  # fmt: skip
    rows += [
        (f"  {part['name']}", _size(part, "peak_bytes"), _size(part, "retained_bytes"), "", "")
        for part in figures.get("parts", ())
    ]
    return rows


def _verdict(figures: Figures) -> str:
    growth = figures.get("growth_per_run_bytes")
    if growth is None:
        return ""
    if figures["answer"] != Verdict.CLEAN.value:
        return f"{format_size(growth)}, {figures['answer']}"
    # The test was measured against its limit: below that, some bytes of its own look like those of the test runner.
    return f"{format_size(growth)}, under {format_size(figures['max_bytes']).replace('.0 ', ' ')} a run"


def _size(figures: Figures, name: str) -> str:
    return format_size(figures[name]) if name in figures else ""


def _peak(figures: Figures) -> int:
    return int(figures.get("peak_bytes", 0))
