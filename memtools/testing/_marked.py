"""One test that asks for an account: what it asks for, and what came of it.

Covers: reading what markers and settings say, the runs of a test with a growth limit, its body's peak, what the body
leaves behind, the figures for the summary.
Leaves to others: pytest (`pytest_memtools`, which is the only one that knows it), rounds and verdicts (`_hunt`).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from memtools.analysis import Answer
from memtools.errors import ConfigError
from memtools.ledger import Meter, Usage
from memtools.records import record
from memtools.scopes import memory_scope
from memtools.testing._around import Around
from memtools.testing._culprits import Culprits
from memtools.testing._exactness import exact_meter
from memtools.testing._hunt import Hunt, Pace
from memtools.testing._leftovers import Leftovers
from memtools.testing._reports import LeakReport
from memtools.testing._signals import signals_of
from memtools.testing._summing_up import sum_up
from memtools.units import format_size, parse_count, parse_size

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
        return parse_count(marker[name], name=name, least=least)
    text = settings.get(f"memtools_{name}")
    if text is None:
        return default
    value: object = int(text) if str(text).strip().isdecimal() else text
    return parse_count(value, name=f"memtools_{name}", least=least)


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
        if self._report is None or self._report.answer is not Answer.LEAK:
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
