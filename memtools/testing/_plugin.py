"""One test that asks for an account: what it asks for, and what came of it.

Covers: reading what markers and settings say, the runs of a test with a growth limit, its body's peak, what the body
leaves behind, the figures for the summary.
Leaves to others: pytest (`pytest_memtools`, which is the only one that knows it), rounds and verdicts (`_hunt`).
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
from memtools.readings import descriptors
from memtools.scopes import memory_scope
from memtools.testing._leak_report import Culprits, LeakReport, sum_up
from memtools.testing._leak_search import Hunt, Pace, exact_meter, signals_of
from memtools.units import format_size, parse_count, parse_size

# An account around the body of a test, whatever runs inside it.
#
# Covers: opening and ending an owner from two hooks of a test runner, its figures meanwhile and afterwards.
# Leaves to others: the hooks (`pytest_memtools`), rounds and verdicts (`_hunt`).
#
# A test runner calls the body from a generator of its own, so that a `with memory_scope(...)` there would be followed
# through the steps of that generator. What is wanted is the thread's turn from here to there: event loops that run
# inside included.


class Around:
    """The account of one test's body.

    Args:
        name: the name of the test.
        meter: who counts.
    """

    def __init__(self, name: str, meter: Meter) -> None:
        self._name = name
        self._meter = meter
        self._owner: Owner | None = None

    def open(self) -> Owner:
        """Begin to charge this thread to the test; a second time after the end begins anew."""
        self._owner = open_owner(self._name, "scope", meter=self._meter)
        return self._owner

    def end(self, *, failed: bool = False) -> None:
        """Charge it no longer; nothing happens before it was opened and after it has ended."""
        if self._owner is not None and not self._owner.ended:
            close_owner(self._owner, failed=failed)

    @property
    def usage(self) -> Usage | None:
        """What it used so far, or in the end; None before it was opened."""
        return current_usage(self._owner) if self._owner is not None else None

    @property
    def current_bytes(self) -> int:
        """What it holds now."""
        return self._owner.live_bytes if self._owner is not None else 0

    @property
    def peak_bytes(self) -> int:
        """The most it held at once."""
        return self._owner.peak_bytes if self._owner is not None else 0


# Objects that must be gone when a test has ended.
#
# Covers: holding them weakly, collecting, the error that names who keeps them.
# Leaves to others: the climb to the root (`memtools.heap`), the fixture (`pytest_memtools`).

T = TypeVar("T")


class Collected:
    """What must be gone at the end."""

    def __init__(self) -> None:
        self._expected: list[tuple[str, Callable[[], Any]]] = []

    def __call__(self, thing: T) -> T:
        """Expect `thing` to be gone when the test has ended; return it.

        Raises:
            ConfigError: if it cannot be weakly referenced.
        """
        try:
            self._expected.append((type(thing).__qualname__, weakref.ref(thing)))
        except TypeError:
            accepted = "an object that can be weakly referenced (with slots: name `__weakref__` among them)"
            raise ConfigError("thing", thing, accepted) from None
        return thing

    def check(self) -> None:
        """Collect, and say who keeps what is left.

        Raises:
            LeakError: one line for each object that is alive, with who keeps it.
        """
        gc.collect()
        lines = [str(why_alive(thing)).splitlines()[0] for _, held in self._expected if (thing := held()) is not None]
        thing = None
        self._expected.clear()
        if lines:
            raise LeakError("what was expected to be collected", tuple(lines))


# What the body of a test leaves behind: tasks that have not ended, threads, descriptors.
#
# Leaves to others: when it is asked (`_marked`).

# A thread ends a moment after the call that ends it.
_LEFTOVER_PATIENCE_S: Final = 0.5
# The runners of coroutine tests keep a task of their own between two tests.
_RUNNERS: Final = ("anyio", "pytest_asyncio", "_pytest")


class Leftovers:
    """What was there before; `found()` says what is there more."""

    def __init__(self) -> None:
        self._tasks = {id(task) for task in _tasks()}
        self._threads = set(threading.enumerate())
        self._descriptors = Counter(descriptors() or ())
        self._noted: tuple[str, ...] = ()

    def note_tasks(self) -> None:
        """Note the tasks that are left now, but for the one that asks: their loop may end before `found()` is asked."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or asyncio._get_running_loop() is None:
            return  # another library's loop
        mine = asyncio.current_task()
        self._noted = tuple(_line(task) for task in self._new_tasks() if task is not mine)

    def _new_tasks(self) -> list[Any]:
        return [task for task in _tasks() if id(task) not in self._tasks]

    def found(self) -> tuple[str, ...]:
        """Return what was left, one line each; threads are given half a second to end."""
        deadline = time.monotonic() + _LEFTOVER_PATIENCE_S
        while (lines := self._lines()) and lines != self._noted and time.monotonic() < deadline:
            gc.collect()  # a descriptor may hang on a cycle
            time.sleep(0.01)
        return lines

    def _lines(self) -> tuple[str, ...]:
        tasks = dict.fromkeys((*self._noted, *map(_line, self._new_tasks())))
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
    # Of every loop, also of one that does not run now: nothing public lists those.
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
        return "it has not begun"
    return f"it waits in {frames[0].f_code.co_qualname}, line {frames[0].f_lineno}"


Asked = tuple[Sequence[object], Mapping[str, object]]

_ACCEPTED: Final = {
    "memory_growth": ("limit", "repeats", "warmup"),
    "memory_peak": ("limit",),
    "no_leaked_tasks": (),
}
# Of the process: what pytest itself does between two runs would be taken for the test's.
_LEFT_OUT: Final = ("blocks", "tasks")
_LEAST_NATIVE_LIMIT: Final = 4096
_PATIENCE_S: Final = 1.0
_DEADLINE_S: Final = 30.0


@record
class Wishes:
    """What a test asks for.

    Attributes:
        growth_bytes: what a run may leave behind, None if it may leave anything.
        repeats: runs that are counted.
        warmup: runs before anything is counted.
        peak_bytes: what the body may have alive at once, None if as much as it likes.
        no_leftovers: whether the body may leave no task, thread or descriptor.
        meter: who counts.
    """

    growth_bytes: int | None
    repeats: int
    warmup: int
    peak_bytes: int | None
    no_leftovers: bool
    meter: Meter


def read_wishes(markers: Mapping[str, Asked], settings: Mapping[str, Any], meter: str | None) -> Wishes:
    """Return what a test asks for: its markers, and for what they do not say the settings of the suite.

    Args:
        markers: the arguments of each marker, by its name.
        settings: what the suite's settings say, by their names; text as it stands there.
        meter: the name of a meter, None for the most exact one.

    Raises:
        ConfigError: for a value that makes no sense, or an argument that a marker does not have.
    """
    named = {name: _by_name(name, *asked) for name, asked in markers.items()}
    growth = named.get("memory_growth")
    limit = growth.get("limit", "1 KiB") if growth is not None else settings.get("memtools_growth_limit")
    peak = named["memory_peak"].get("limit") if "memory_peak" in named else settings.get("memtools_peak_limit")
    if "memory_peak" in named and peak is None:
        raise ConfigError("limit", None, "memory_peak(limit=...) with a size such as '50 MiB'")
    return Wishes(
        None if limit is None else parse_size(limit, name="limit"),
        _count("repeats", growth, settings, default=5, least=3),
        _count("warmup", growth, settings, default=2, least=0),
        None if peak is None else parse_size(peak, name="limit"),
        "no_leaked_tasks" in named or bool(settings.get("memtools_no_leaked_tasks")),
        exact_meter(meter),
    )


def _by_name(marker: str, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    accepted = _ACCEPTED[marker]
    if len(args) > len(accepted) or set(kwargs) - set(accepted):
        unknown = ", ".join([*map(repr, args[len(accepted) :]), *sorted(set(kwargs) - set(accepted))])
        raise ConfigError(marker, unknown, f"{', '.join(accepted) or 'no argument'}")
    return {**dict(zip(accepted, args, strict=False)), **kwargs}


def _count(
    name: str, marker: Mapping[str, object] | None, settings: Mapping[str, Any], *, default: int, least: int
) -> int:
    if marker is not None and name in marker:
        return parse_count(marker[name], name=name, minimum=least)
    text = settings.get(f"memtools_{name}")
    if text is None:
        return default
    value: object = int(text) if str(text).strip().isdecimal() else text
    return parse_count(value, name=f"memtools_{name}", minimum=least)


class Marked:
    """One test with an account.

    Args:
        name: the test's name.
        wishes: what it asks for.
    """

    def __init__(self, name: str, wishes: Wishes) -> None:
        self.name = name
        self._wishes = wishes
        self._body = Around(name, wishes.meter)
        self._runs = Around(name, wishes.meter)
        self._leftovers: Leftovers | None = None
        self._hunt: Hunt | None = None
        self._report: LeakReport | None = None
        self._parts: list[Usage] = []

    @property
    def is_repeated(self) -> bool:
        """Whether it is to be run again and again."""
        return self._wishes.growth_bytes is not None

    @property
    def meter_name(self) -> str:
        """Who counts."""
        return self._wishes.meter.name

    @property
    def usage(self) -> Usage | None:
        """What the body used so far, or in the end."""
        return self._body.usage

    @property
    def current_bytes(self) -> int:
        """What the body holds now."""
        return self._body.current_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that the body held at once."""
        return self._body.peak_bytes

    def plan(self) -> Iterator[int]:
        """Yield how many runs to make next, until it is clear whether they leave something behind."""
        limit = self._wishes.growth_bytes or 0
        begun = time.perf_counter()
        owner = self._runs.open()
        try:
            signals = [
                signal if signal.name != "native bytes" else signal.with_tolerance(max(limit, _LEAST_NATIVE_LIMIT))
                for signal in signals_of(owner, float(limit))
                if signal.name not in _LEFT_OUT
            ]
            pace = Pace(self._wishes.repeats, 1, self._wishes.warmup, _PATIENCE_S, _DEADLINE_S)
            self._hunt = Hunt(signals, pace)
            yield from self._hunt.plan()
        finally:
            self._runs.end()
        culprits = None if self._hunt.is_clean else Culprits(self._wishes.repeats)
        if culprits is not None:
            yield from culprits.plan()
        spent = time.perf_counter() - begun
        self._report = sum_up(self.name, self._hunt, culprits, self._wishes.meter.name, spent)

    def give_up(self) -> None:
        """End the accounts: a run has failed, and says why itself."""
        self._body.end(failed=True)
        self._runs.end(failed=True)

    def judge_growth(self) -> str:
        """Return what grew and who holds it, empty if nothing does."""
        if self._report is None or self._report.answer is not Verdict.LEAK:
            return ""
        head = f"{self.name} leaves more than {format_size(self._wishes.growth_bytes or 0)} behind with each run:"
        return "\n  ".join((head, *self._report.lines()))

    def begin_body(self) -> None:
        """Open the account of the body."""
        self._parts.clear()
        if self._wishes.no_leftovers:
            self._leftovers = Leftovers()
        self._body.open()

    def look_inside_loop(self) -> None:
        """Note the tasks that are left, while the loop that runs them is there."""
        if self._leftovers is not None:
            self._leftovers.note_tasks()

    def end_body(self, *, failed: bool) -> None:
        """End the account of the body."""
        self._body.end(failed=failed)

    def judge_body(self) -> str:
        """Return what the body did that it may not, empty if nothing."""
        usage = self._body.usage
        limit = self._wishes.peak_bytes
        if usage is not None and limit is not None and usage.peak_bytes > limit:
            doubt = "" if usage.exact else f", {usage.note}"
            peak = format_size(usage.peak_bytes)
            return f"{self.name} had {peak} alive at once, limit {format_size(limit)} ({usage.meter} meter{doubt})"
        left = self._leftovers.found() if self._leftovers is not None else ()
        return "\n  ".join((f"{self.name} leaves behind:", *left)) if left else ""

    def add_part(self, usage: Usage) -> None:
        """Remember what a part of the test used, for the summary."""
        self._parts.append(usage)

    def properties(self) -> list[tuple[str, object]]:
        """Return the figures for the summary, as (`"memtools"`, what JSON can hold)."""
        usage = self._body.usage
        found: dict[str, object] = {"test": self.name, "meter": self._wishes.meter.name, "parts": [
            {"name": part.name, "peak_bytes": part.peak_bytes, "retained_bytes": part.retained_bytes}
            for part in self._parts
        ]}  # fmt: skip
        if usage is not None:
            found |= {"peak_bytes": usage.peak_bytes, "retained_bytes": usage.retained_bytes, "exact": usage.exact}
        if self._report is not None:
            (counted,) = (one for one in self._report.findings if one.signal == "bytes")
            found |= {
                "runs": self._report.calls,
                "growth_per_run_bytes": round(counted.per_call, 1),
                "answer": self._report.answer.value,
                "lines": list(self._report.lines()),
            }
        return [("memtools", found)]


class Part(memory_scope):
    """A scope for a part of a test, whose figures go into the summary."""

    __slots__ = ("_marked",)

    def __init__(self, marked: Marked, name: str) -> None:
        super().__init__(name, meter=marked.meter_name)
        self._marked = marked

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._marked.add_part(self.usage)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        self._marked.add_part(self.usage)


# The lines that a test run ends with: what was measured, test by test.

Figures = Mapping[str, Any]  # Any: what JSON can hold


def summary_lines(results: Sequence[Figures]) -> list[str]:
    """Return a table, the largest peak first, parts of a test below it."""
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
