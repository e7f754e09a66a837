"""What to change, and where: one recommendation for each thing that holds much or never ends.

Covers: the judgement. Leaves to others: finding the things (`_holders`, `_containers`, `_unended`), the words around
them (`_report`).
"""

from typing import TYPE_CHECKING, Final

from memtools.monitor._holders import Holder, holders
from memtools.monitor._statistics import MonitorStatistics
from memtools.monitor._unended import Unended, unended_tasks
from memtools.records import record
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.monitor._containers import Container

_WORTH_BYTES: Final = 1 << 20  # less than this is not worth a line
_MANY_TASKS: Final = 100
_MOST: Final = 5  # of each kind


@record
class Recommendation:
    """One thing to change.

    Attributes:
        subject: what it is about: an owner, a structure, a function, a task, or the monitor itself.
        kind: `"owner"`, `"structure"`, `"function"`, `"task"` or `"monitor"`.
        held_bytes: what it holds, as far as known.
        place: `file:line` of the line to change; empty where it is not known.
        advice: what to do, one sentence.
    """

    subject: str
    kind: str
    held_bytes: int
    place: str
    advice: str

    def __str__(self) -> str:
        size = f" holds {format_size(self.held_bytes)}" if self.held_bytes else ""
        place = f" ({self.place})" if self.place else ""
        return f"{self.subject}{size}{place}: {self.advice}"


def recommend(statistics: MonitorStatistics) -> tuple[Recommendation, ...]:
    """Return what to change, what holds most first."""
    from memtools.monitor._containers import largest_containers  # loaded by who asks, not by who imports memtools

    found = [_for_container(one) for one in largest_containers(_MOST) if one.held_bytes >= _WORTH_BYTES]
    found += [_for_holder(one) for one in holders()[:_MOST] if _size_of(one) >= _WORTH_BYTES]
    found += [_for_tasks(one) for one in unended_tasks()[:_MOST] if one.tasks >= _MANY_TASKS]
    found.sort(key=lambda one: one.held_bytes, reverse=True)
    return (*found, *_for_monitor(statistics))


def _for_container(one: "Container") -> Recommendation:
    if one.kind == "WeakCache":
        advice = "lower its `strong`, or give it `max_bytes`"
    elif one.is_bounded:
        advice = f"lower its bound ({one.bound}); {one.items:,} items are in it"
    elif one.kind in ("list", "deque"):
        advice = f"bound this {one.kind}: BoundedList(maxlen=...) in its place; {one.items:,} items are in it"
    else:
        advice = f"bound this {one.kind}: WeakCache(strong=...), or drop what has ended; {one.items:,} items are in it"
    return Recommendation(one.name, "structure", one.held_bytes, one.place, advice)


def _for_holder(one: Holder) -> Recommendation:
    size = _size_of(one)
    if one.kind == "call":
        each = format_size(one.retained_bytes / max(1, one.calls))
        kept = f"{each} a call outlive {one.calls:,} calls: see what it appends to or caches, or give it @memory_budget"
        return Recommendation(one.name, "function", size, "", kept)
    if one.kind == "task" and one.active:
        ended = "this task never ended" if one.active == 1 else f"{one.active:,} of these tasks never ended"
        return Recommendation(
            one.name, "task", size, "", f"{ended}: give it an end, or run it in a task_scope(limit=...)"
        )
    if one.active:
        advice = f"{one.active:,} still open: end it, or give it a budget"
    else:
        each = format_size(one.retained_bytes / max(1, one.calls))
        advice = f"{each} each outlive {one.calls:,} of them that ended: see what it appends to or caches"
    return Recommendation(one.name, "owner", size, "", advice)


def _for_tasks(one: Unended) -> Recommendation:
    advice = "they never ended and wait here: give them a timeout, or start them in a task_scope(limit=...)"
    return Recommendation(f"{one.tasks:,} tasks of {one.name}", "task", 0, one.place, advice)


def _for_monitor(seen: MonitorStatistics) -> list[Recommendation]:
    found: list[Recommendation] = []
    limit = seen.limit.value_bytes if seen.limit is not None else None
    for name, entry in (("warning", seen.warning_bytes), ("critical", seen.critical_bytes)):
        if entry is not None and limit is not None and entry > limit:
            advice = f"{name}={format_size(entry)} lies above the limit of {format_size(limit)}: it is never reached"
            found.append(Recommendation(seen.name, "monitor", 0, "", advice))
    broken = [one.name for one in seen.callbacks if one.is_broken]
    if broken:
        found.append(Recommendation(", ".join(broken), "monitor", 0, "", "this callback keeps failing: see the log"))
    if seen.missed_looks:
        advice = f"{seen.missed_looks:,} readings were refused: are there file descriptors left?"
        found.append(Recommendation(seen.name, "monitor", 0, "", advice))
    return found


def _size_of(one: Holder) -> int:
    return max(one.live_bytes, 0) or one.retained_bytes
