"""The accounts of marked tests: options, repeated runs, peaks, leftovers, and the summary.

Independent of pytest: only the plugin module `pytest_memtools` imports it.
"""

import gc
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar

from memtools._records import record
from memtools.analysis import Verdict
from memtools.errors import ConfigError, LeakError
from memtools.heap import why_alive
from memtools.ledger import Meter, Owner, Usage
from memtools.ledger._ledger import close_owner, current_usage, open_owner
from memtools.readings._counters import descriptors
from memtools.scopes import memory_scope
from memtools.testing._leak_report import HolderSearch, LeakReport, build_report
from memtools.testing._leak_search import LeakSearch, SearchLimits, default_test_meter, metrics_of
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


class CollectedObjects:
    """Objects that must be garbage at the end of a test."""

    def __init__(self) -> None:
        self._expected: list[tuple[str, Callable[[], Any]]] = []

    def __call__(self, target: T) -> T:
        """Expect `target` to be garbage when the test has ended; return it.

        Raises:
            ConfigError: if it cannot be weakly referenced.
        """
        try:
            self._expected.append((type(target).__qualname__, weakref.ref(target)))
        except TypeError:
            accepted = "an object that can be weakly referenced (with slots: name `__weakref__` among them)"
            raise ConfigError("target", target, accepted) from None
        return target

    def check(self) -> None:
        """Collect garbage, and fail if an object is still alive.

        Raises:
            LeakError: one line for each object that is alive, with its holders.
        """
        gc.collect()
        lines = [
            str(why_alive(target)).splitlines()[0]
            for _, reference in self._expected
            if (target := reference()) is not None
        ]
        target = None
        self._expected.clear()
        if lines:
            raise LeakError("what was expected to be collected", tuple(lines))


# Seconds: a thread ends a moment after the call that ends it.
_THREAD_END_TIMEOUT_S: Final = 0.5
# The runners of coroutine tests keep their own task between two tests.
_RUNNERS: Final = ("anyio", "pytest_asyncio", "_pytest")


class Leftovers:
    """The tasks, threads and descriptors before the body; `found()` returns the new ones."""

    def __init__(self) -> None:
        self._tasks = {id(task) for task in _tasks()}
        self._threads = set(threading.enumerate())
        self._descriptors = Counter(descriptors() or ())
        self._task_lines: tuple[str, ...] = ()

    def snapshot_tasks(self) -> None:
        """Record the unfinished tasks, except the current one: their loop may end before `found()` is called."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or asyncio._get_running_loop() is None:
            return  # the loop of another library
        mine = asyncio.current_task()
        self._task_lines = tuple(_line(task) for task in self._new_tasks() if task is not mine)

    def _new_tasks(self) -> list[Any]:
        return [task for task in _tasks() if id(task) not in self._tasks]

    def found(self) -> tuple[str, ...]:
        """Return the leftovers, one line each; threads get half a second to end."""
        deadline = time.monotonic() + _THREAD_END_TIMEOUT_S
        while (lines := self._lines()) and lines != self._task_lines and time.monotonic() < deadline:
            gc.collect()  # garbage in a cycle may hold a descriptor
            time.sleep(0.01)
        return lines

    def _lines(self) -> tuple[str, ...]:
        tasks = dict.fromkeys((*self._task_lines, *map(_line, self._new_tasks())))
        threads = [thread for thread in threading.enumerate() if thread not in self._threads]
        more = Counter(descriptors() or ()) - self._descriptors
        return (
            *tasks,
            *(f"thread {thread.name!r}" for thread in threads),
            *(f"descriptor {target}" + (f" ({count} times)" if count > 1 else "") for target, count in more.items()),
        )


def _tasks() -> list[Any]:  # Any: of asyncio, which may not be loaded
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return []
    # The tasks of every loop, also of one that is not running: no public function lists those.
    found = [one for one in gc.get_objects() if issubclass(type(one), asyncio.Task)]
    return [task for task in found if not task.done() and not _is_runner(task)]


def _is_runner(task: Any) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    parts = code.co_filename.replace("\\", "/").split("/") if code is not None else ()
    return any(name in parts for name in _RUNNERS)


def _line(task: Any) -> str:
    return f"task {task.get_name()!r}: {_where(task)}"


def _where(task: Any) -> str:
    frames = task.get_stack(limit=1)
    if not frames:
        return "it has not started"
    return f"it waits in {frames[0].f_code.co_qualname}, line {frames[0].f_lineno}"


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
    """

    def __init__(self, name: str, options: MarkerOptions) -> None:
        self.name = name
        self._options = options
        self._body = MeasuredBlock(name, options.meter)
        self._runs = MeasuredBlock(name, options.meter)
        self._leftovers: Leftovers | None = None
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

    def run_counts(self) -> Iterator[int]:
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
            self._leftovers = Leftovers()
        self._body.open()

    def snapshot_tasks(self) -> None:
        """Record the unfinished tasks while their loop exists."""
        if self._leftovers is not None:
            self._leftovers.snapshot_tasks()

    def end_body(self, *, failed: bool) -> None:
        """Close the account of the body."""
        self._body.end(failed=failed)

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
    growth = figures.get("growth_per_run_bytes")
    verdict = f"{format_size(growth)} {figures['answer']}" if growth is not None else ""
    rows: list[tuple[str, ...]] = [
        (str(figures["test"]), _size(figures, "peak_bytes"), _size(figures, "retained_bytes"), verdict,
         str(figures.get("runs", "")))
    ]  # fmt: skip
    rows += [
        (f"  {part['name']}", _size(part, "peak_bytes"), _size(part, "retained_bytes"), "", "")
        for part in figures.get("parts", ())
    ]
    return rows


def _size(figures: Figures, name: str) -> str:
    return format_size(figures[name]) if name in figures else ""


def _peak(figures: Figures) -> int:
    return int(figures.get("peak_bytes", 0))
