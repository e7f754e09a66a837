"""The monitor's report: what was seen and done, and what to change, as text.

Leaves to others: the figures (`_summing`), the recommendations (`_advice`).
"""

import os
import sys
from collections import Counter, deque
from typing import Any, Final

from memtools._records import record
from memtools.cleanup import registered
from memtools.heap import ReferrerPath, largest_containers, paths_to, shallow_size, source_line
from memtools.ledger import AccountStatistics, open_owners, statistics
from memtools.monitor._statistics import MonitorStatistics
from memtools.readings import Level
from memtools.structures import BoundedList, WeakCache
from memtools.units import format_size

# Which owners hold the most.
#
# Leaves to others: who owns what (`memtools.ledger`), plain containers that nobody owns (`_containers`).


@record
class Holder:
    """An owner, or the owners of one account together.

    Attributes:
        name: names from the outermost owner down, joined by ` > `.
        kind: `"scope"`, `"call"` or `"task"`.
        live_bytes: what is alive of it now, as far as its meter knows.
        active: how many of them are open.
        calls: how many there were.
        retained_bytes: what was alive of each at its end, added up, and what the open ones hold.
    """

    name: str
    kind: str
    live_bytes: int
    active: int
    calls: int
    retained_bytes: int


def holders() -> tuple[Holder, ...]:
    """Return all accounts of the process that hold or retained anything, the one that holds most first."""
    live: dict[tuple[str, ...], int] = {}
    for owner in open_owners():
        live[owner.path] = live.get(owner.path, 0) + max(0, owner.live_bytes)
    found: list[Holder] = []
    for entry in statistics().accounts:
        _collect(entry, (), live, found)
    return tuple(sorted(found, key=lambda holder: (holder.live_bytes, holder.retained_bytes), reverse=True))


def largest_owners(most: int) -> tuple[tuple[str, int], ...]:
    """Return up to `most` owners with the most live bytes, as (name, bytes).

    An owner's bytes include those of the owners below it.
    """
    return tuple((holder.name, holder.live_bytes) for holder in holders()[:most] if holder.live_bytes > 0)


def _collect(
    entry: AccountStatistics, above: tuple[str, ...], live: dict[tuple[str, ...], int], found: list[Holder]
) -> None:
    path = (*above, entry.name)
    # The native meter knows what all owners of an account have made that lives; of the others only open ones are known.
    held = live.get(path, 0) if entry.live_bytes is None else entry.live_bytes
    if held > 0 or entry.retained_bytes > 0:
        found.append(Holder(" > ".join(path), entry.kind, held, entry.active, entry.started, entry.retained_bytes))
    for child in entry.children:
        _collect(child, path, live, found)


# Tasks that have not ended, by what they run and where they wait.
#
# Leaves to others: whether that is too many (`_advice`).

_ASYNCIO: Final = os.path.join(os.path.dirname(os.__file__), "asyncio")


@record
class Unended:
    """The tasks of the loops in this process that run one coroutine function and wait at one place.

    Attributes:
        name: the function's qualified name.
        tasks: how many there are.
        place: `file:line` where they wait; empty where they have not begun, or are no coroutines of Python.
    """

    name: str
    tasks: int
    place: str


def unended_tasks() -> tuple[Unended, ...]:
    """Return the tasks that have not ended, the most frequent first; from any thread."""
    asyncio: Any = sys.modules.get("asyncio.tasks")  # Any: what is looked at is the table behind `all_tasks`
    if asyncio is None:
        return ()
    counted: Counter[tuple[str, str]] = Counter()
    for task in _alive(asyncio):
        if not task.done():
            coroutine: Any = task.get_coro()
            counted[str(getattr(coroutine, "__qualname__", "a coroutine")), _place_of(coroutine)] += 1
    return tuple(Unended(name, tasks, place) for (name, place), tasks in counted.most_common())


def _alive(asyncio: Any) -> list[Any]:
    # Not `all_tasks()`: it asks for the tasks of one loop. The table's name is older than Python 3.12; eager tasks have
    # one of their own since.
    table: Any = getattr(asyncio, "_scheduled_tasks", None) or getattr(asyncio, "_all_tasks", ())
    for _ in range(100):
        try:
            return list(table)
        except RuntimeError:  # another thread has added a task meanwhile
            continue
    return []


def _place_of(coroutine: Any) -> str:
    # The innermost await of the program itself; where asyncio waits inside of it is no news.
    frame: Any = None
    for _ in range(100):
        found = getattr(coroutine, "cr_frame", None)
        if found is None:
            break
        if frame is None or not found.f_code.co_filename.startswith(_ASYNCIO):
            frame = found
        coroutine = getattr(coroutine, "cr_await", None)
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


# What to change, and where: one recommendation for each thing that holds much or never ends.
#
# Covers: the judgement. Leaves to others: finding the things (`_holders`, `_containers`, `_unended`), the words around
# them (`_report`).

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
    found = [_for_container(one) for one in measured_containers(_MOST) if one.held_bytes >= _WORTH_BYTES]
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
            one.name, "task", size, "", f"{ended}: give it an end, or run it in a task_scope(max_running=...)"
        )
    if one.active:
        advice = f"{one.active:,} still open: end it, or give it a budget"
    else:
        each = format_size(one.retained_bytes / max(1, one.calls))
        advice = f"{each} each outlive {one.calls:,} of them that ended: see what it appends to or caches"
    return Recommendation(one.name, "owner", size, "", advice)


def _for_tasks(one: Unended) -> Recommendation:
    advice = "they never ended and wait here: give them a timeout, or start them in a task_scope(max_running=...)"
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
    if seen.failed_samples:
        advice = f"{seen.failed_samples:,} readings were refused: are there file descriptors left?"
        found.append(Recommendation(seen.name, "monitor", 0, "", advice))
    return found


def _size_of(one: Holder) -> int:
    return max(one.live_bytes, 0) or one.retained_bytes


# Find the containers that hold the most, and what they are called in the program.
#
# Covers: what each weighs, by a sample; whether it keeps to a bound. Leaves to others: finding and naming them
# (`memtools.heap`), what to do about them (`_advice`).
#
# Cost: walks all objects of the collector, some 0.3 s for each million, and two to four times more for the names, for two
# seconds at most: for a report, not for a beat.

_LEAST_ITEMS: Final = 1000
_NAMING_S: Final = 2.0  # then the rest goes without names


@record
class Container:
    """A container, and where the program holds it.

    Attributes:
        name: `module.name`, `module.Class.name`, or its kind where nobody with a name holds it.
        kind: the name of its class.
        items: how many it holds.
        held_bytes: its own size and that of its items, from a sample of them, shallow.
        place: `file:line` where it is made, empty where that cannot be found.
        is_bounded: whether it keeps to a bound by itself.
        bound: the bound in words, empty where there is none.
    """

    name: str
    kind: str
    items: int
    held_bytes: int
    place: str
    is_bounded: bool
    bound: str


def measured_containers(most: int = 5) -> tuple[Container, ...]:
    """Return the containers with at least 1,000 items that hold the most, by a sample of their items."""
    found: list[Any] = [thing for thing in registered() if isinstance(thing, (BoundedList, WeakCache))]
    bounded = set(map(id, found))
    found += [thing for thing in largest_containers(4 * most, minimum=_LEAST_ITEMS) if id(thing) not in bounded]
    weights = {id(thing): _weight(thing) for thing in found}
    heaviest = sorted((one for one in found if weights[id(one)]), key=lambda one: weights[id(one)], reverse=True)[:most]
    found.clear()  # or it would be among the holders
    ways = paths_to(heaviest, timeout=_NAMING_S)
    return tuple(_described(thing, weights[id(thing)], way) for thing, way in zip(heaviest, ways, strict=True))


def _weight(thing: Any) -> int:
    if isinstance(thing, WeakCache):
        statistics: Any = thing.statistics()
        return int(statistics.strong_bytes or 0)
    return shallow_size(thing)


def _described(thing: Any, weight: int, way: ReferrerPath) -> Container:
    holder = _nearest_name(way)
    kind = type(thing).__name__
    bound = _bound_of(thing)
    return Container(holder or f"a {kind}", kind, len(thing), weight, source_line(holder), bool(bound), bound)


def _nearest_name(way: ReferrerPath) -> str:
    # What is in a list of a dict is known by the first holder that has a name.
    named = (holder.removeprefix("class ") for holder in way.holders if "." in holder and "[" not in holder)
    return next(named, "")


def _bound_of(thing: Any) -> str:
    if isinstance(thing, BoundedList):
        bounded: Any = thing  # pyright: ignore[reportUnknownVariableType]  # a list of anything
        return f"maxlen={bounded.maxlen}, keep={bounded.keep}" if bounded.maxlen else f"max_bytes={bounded.max_bytes}"
    if isinstance(thing, WeakCache):
        return "strong="
    return f"maxlen={thing.maxlen}" if type(thing) is deque and thing.maxlen is not None else ""


_MOST_OPERATIONS: Final = 10


def in_words(seen: MonitorStatistics, advice: tuple[Recommendation, ...]) -> str:
    """Return the report: a line for each fact, then the operations, then what to change."""
    lines = [f"{seen.name}: {seen.level.name} for {seen.level_since_s:.0f} s", *_memory(seen), *_acts(seen)]
    if seen.by_operation:
        lines += ["", "operations (calls, failed, mean, longest):"]
        lines += [
            f"  {one.name}: {one.calls:,}, {one.failures:,}, {one.mean_s * 1000:.3f} ms, {one.longest_s * 1000:.3f} ms"
            for one in seen.by_operation[:_MOST_OPERATIONS]
        ]
    lines += ["", "what to change:"]
    lines += [f"  - {one}" for one in advice] or ["  nothing that holds more than 1 MiB stands out"]
    return "\n".join(lines)


def _memory(seen: MonitorStatistics) -> list[str]:
    lines = [f"  in use     {seen.reading or 'not looked at yet'}"]
    if seen.limit is not None:
        lines.append(f"  limit      {seen.limit}")
    if seen.headroom is not None:
        lines.append(f"  headroom   {seen.headroom}")
    marks = (("warning", seen.warning_bytes), ("critical", seen.critical_bytes))
    shown = ", ".join(f"{name} at {format_size(entry)}" for name, entry in marks if entry is not None)
    return [*lines, f"  thresholds {shown or 'by free room only'}"]


def _acts(seen: MonitorStatistics) -> list[str]:
    changes = ", ".join(f"{seen.level_changes.get(level, 0)} to {level.name}" for level in Level)
    admissions, pauses = seen.admissions, seen.pauses
    tried = f"{seen.cleanups:,} and {seen.minor_collections:,} light, {seen.cleanup_s:.2f} s"
    gained = f"{format_size(seen.freed_bytes)} given back, {seen.ineffective_reclaims:,} in vain"
    called = f"{len(seen.callbacks):,}, {seen.callback_failures:,} failures, {seen.callbacks_broken:,} left out"
    return [
        f"  levels     {changes}",
        f"  looks      {seen.samples:,} ({seen.failed_samples:,} refused), beat: {seen.mode}",
        f"  clean-ups  {tried}, {gained}",
        f"  collector  {pauses.pauses:,} pauses, longest {pauses.longest_s * 1000:.1f} ms",
        f"  callbacks  {called}",
        f"  admitted   {admissions.admitted:,}, {admissions.queued:,} waiting, {admissions.active:,} inside",
    ]
