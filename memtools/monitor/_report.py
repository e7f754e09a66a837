"""The report of a monitor, and its recommendations."""

import os
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from memtools._identity import identity
from memtools._records import record
from memtools.analysis._growth_by_call import find_leftovers
from memtools.cleanup import registered
from memtools.heap import ReferrerPath
from memtools.heap._describe import source_line
from memtools.heap._inspect import all_objects, real_type
from memtools.heap._largest import shallow_size, sized_largest
from memtools.heap._why_alive import paths_to
from memtools.ledger import AccountStatistics, open_owners, statistics
from memtools.monitor._statistics import MonitorStatistics
from memtools.readings import Level, ResidentSplit
from memtools.structures import BoundedDict, BoundedList, WeakCache
from memtools.units import format_size

_MIN_BYTES: Final = 1 << 20  # less than this is not worth a line
_MIN_TASKS: Final = 100
_IS_NO_NAME: Final = re.compile(r"\[| times$")
_MIN_ITEMS: Final = 1000
_MAX_OF_A_KIND: Final = 5
_MAX_OPERATIONS: Final = 10
_NAMING_TIMEOUT_S: Final = 2.0  # then the other containers stay without names
_MAX_AWAIT_DEPTH: Final = 100
_ASYNCIO: Final = os.path.join(os.path.dirname(os.__file__), "asyncio")


@record
class Recommendation:
    """One change that would lower the use of memory.

    Attributes:
        subject: an owner, a structure, a function, a task, or the monitor itself.
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


@record
class OwnerSize:
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

    @property
    def held_bytes(self) -> int:
        """Its live bytes where they are known, else the retained ones."""
        return max(self.live_bytes, 0) or self.retained_bytes


@record
class Container:
    """A container, and where the program holds it.

    Attributes:
        name: `module.name`, `module.Class.name`, or its kind where no holder has a name.
        kind: the name of its class.
        items: how many it holds.
        held_bytes: its own size and that of its items, from a sample of them, shallow.
        place: `file:line` where it is made, empty where that cannot be found.
        is_bounded: whether it keeps to a bound by itself.
        bound: the arguments of the bound, empty where there is none.
    """

    name: str
    kind: str
    items: int
    held_bytes: int
    place: str
    is_bounded: bool
    bound: str


@record
class PendingTasks:
    """The tasks of the loops in this process that run one coroutine function and wait at one place.

    Attributes:
        name: the function's qualified name.
        tasks: how many there are.
        place: `file:line` where they wait; empty where they have not begun, or are no coroutines of Python.
    """

    name: str
    tasks: int
    place: str


def format_report(
    statistics: MonitorStatistics,
    advice: tuple[Recommendation, ...],
    split: ResidentSplit | None = None,
    trend: tuple[str, ...] = (),
) -> str:
    """Return the report: the counts, the trend, the operations, what memory consists of, what to change."""
    seen = statistics
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    lines = [f"{seen.name}: {seen.level.name} for {seen.level_since_s:.0f} s", f"  at         {now}"]
    lines += [f"  {label:<10} {text}" for label, text in identity()]
    lines += [*_memory_lines(seen), *_activity_lines(seen)]
    lines += ["", "trend:", *(f"  {line}" for line in trend)] if trend else []
    if seen.by_operation:
        lines += ["", "operations (calls, failed, mean, longest):"]
        lines += [
            f"  {operation.name}: {operation.calls:,}, {operation.failures:,}, {operation.mean_s * 1000:.3f} ms, "
            f"{operation.longest_s * 1000:.3f} ms"
            for operation in seen.by_operation[:_MAX_OPERATIONS]
        ]
    lines += [] if split is None else ["", *str(split).splitlines()]
    lines += ["", "what to change:"]
    lines += [f"  - {recommendation}" for recommendation in advice] or ["  nothing holds more than 1 MiB"]
    return "\n".join(lines)


def _memory_lines(seen: MonitorStatistics) -> list[str]:
    lines = [f"  in use     {seen.reading or 'not sampled yet'}"]
    if seen.limit is not None:
        lines.append(f"  limit      {seen.limit}")
    if seen.headroom is not None:
        lines.append(f"  headroom   {seen.headroom}")
    uses = (("warning", seen.warning_bytes), ("critical", seen.critical_bytes))
    headrooms = (("warning", seen.warning_free_bytes), ("critical", seen.critical_free_bytes))
    thresholds = [f"{name} at {format_size(entry)}" for name, entry in uses if entry is not None]
    thresholds += [f"{name} below {format_size(entry)} free" for name, entry in headrooms if entry is not None]
    return [*lines, f"  thresholds {', '.join(thresholds)}"]


def _activity_lines(seen: MonitorStatistics) -> list[str]:
    changes = ", ".join(f"{seen.level_changes.get(level, 0)} to {level.name}" for level in Level)
    admissions, pauses = seen.admissions, seen.pauses
    passes = f"{seen.cleanups:,}, and {seen.minor_collections:,} minor collections, {seen.cleanup_s:.2f} s"
    effect = f"{format_size(seen.freed_bytes)} given back, {seen.ineffective_reclaims:,} ineffective"
    called = f"{len(seen.callbacks):,}, {seen.callback_failures:,} failures, {seen.callbacks_broken:,} not called now"
    return [
        f"  levels     {changes}",
        f"  samples    {seen.samples:,} ({seen.failed_samples:,} refused), sampling loop: {seen.mode}",
        f"  clean-ups  {passes}, {effect}",
        f"  collector  {pauses.pauses:,} pauses, longest {pauses.longest_s * 1000:.1f} ms",
        f"  callbacks  {called}",
        f"  admitted   {admissions.admitted:,}, {admissions.queued:,} queued, {admissions.active:,} active",
    ]


def recommendations(statistics: MonitorStatistics) -> tuple[Recommendation, ...]:
    """Return what to change, the largest first."""
    found = [_for_container(each) for each in sized_containers(_MAX_OF_A_KIND) if each.held_bytes >= _MIN_BYTES]
    found += [_for_owner(each) for each in owner_sizes()[:_MAX_OF_A_KIND] if each.held_bytes >= _MIN_BYTES]
    found += [_for_tasks(each) for each in pending_tasks()[:_MAX_OF_A_KIND] if each.tasks >= _MIN_TASKS]
    found.sort(key=lambda recommendation: recommendation.held_bytes, reverse=True)
    return (*found, *_for_monitor(statistics))


def _for_container(container: Container) -> Recommendation:
    kind, items = container.kind, f"{container.items:,} items are in it"
    if kind == "WeakCache":
        advice = "lower its `strong`, or give it `max_bytes`"
    elif container.is_bounded:
        advice = f"lower its bound ({container.bound}); {items}"
    elif kind in ("list", "deque"):
        advice = f"bound this {kind}: BoundedList(maxlen=...) in its place; {items}"
    elif kind in ("dict", "OrderedDict", "defaultdict"):
        advice = f"bound this {kind}: BoundedDict(maxlen=...) in its place, or drop what has ended; {items}"
    else:
        advice = f"bound this {kind}: WeakCache(strong=...), or drop what has ended; {items}"
    return Recommendation(container.name, "structure", container.held_bytes, container.place, advice)


def _for_owner(owner: OwnerSize) -> Recommendation:
    kind = {"call": "function", "task": "task" if owner.active else "owner"}.get(owner.kind, "owner")
    per_call = format_size(owner.retained_bytes / max(1, owner.calls))
    if kind == "function":
        look = "see what it appends to or caches, or give it @memory_budget"
        advice = f"{per_call} a call outlive {owner.calls:,} calls: {look}"
    elif kind == "task":
        running = "this task has" if owner.active == 1 else f"{owner.active:,} of these tasks have"
        advice = f"{running} not ended: give it an end, or run it in a task_scope(max_running=...)"
    elif owner.active:
        advice = f"{owner.active:,} still open: end it, or give it a budget"
    else:
        advice = f"{per_call} each outlive {owner.calls:,} of them that ended: see what it appends to or caches"
    return Recommendation(owner.name, kind, owner.held_bytes, "", advice)


def _for_tasks(pending: PendingTasks) -> Recommendation:
    advice = "they never ended and wait here: give them a timeout, or start them in a task_scope(max_running=...)"
    return Recommendation(f"{pending.tasks:,} tasks of {pending.name}", "task", 0, pending.place, advice)


def _for_monitor(seen: MonitorStatistics) -> list[Recommendation]:
    found: list[Recommendation] = []
    limit = seen.limit.value_bytes if seen.limit is not None else None
    for name, entry in (("warning", seen.warning_bytes), ("critical", seen.critical_bytes)):
        if entry is not None and limit is not None and entry > limit:
            advice = f"{name}={format_size(entry)} is above the limit of {format_size(limit)}: it is never reached"
            found.append(Recommendation(seen.name, "monitor", 0, "", advice))
    broken = [callback.name for callback in seen.callbacks if callback.is_broken]
    if broken:
        found.append(Recommendation(", ".join(broken), "monitor", 0, "", "this callback keeps failing: see the log"))
    if seen.failed_samples:
        advice = f"{seen.failed_samples:,} readings were refused: are there file descriptors left?"
        found.append(Recommendation(seen.name, "monitor", 0, "", advice))
    return found


def notable_owners(count: int) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]:
    """Return up to `count` owners with the most live bytes, and up to `count` whose every call leaves something behind.

    They are pairs of name and bytes: those of the former include what the owners below hold, those of the latter are
    bytes per call. The accounts are read once: that takes a tenth of a second where there are thousands.
    """
    accounts = statistics().accounts
    largest = [(owner.name, owner.live_bytes) for owner in owner_sizes(accounts)[:count] if owner.live_bytes > 0]
    left = [(leftover.name, round(leftover.per_call_bytes)) for leftover in find_leftovers(accounts)[:count]]
    return tuple(largest), tuple(left)


def owner_sizes(accounts: Iterable[AccountStatistics] | None = None) -> tuple[OwnerSize, ...]:
    """Return those of the accounts, by default of all, that hold or retained anything, the largest first."""
    live: dict[tuple[str, ...], int] = {}
    for owner in open_owners():
        live[owner.path] = live.get(owner.path, 0) + max(0, owner.live_bytes)
    found: list[OwnerSize] = []
    for account in statistics().accounts if accounts is None else accounts:
        _collect(account, (), live, found)
    return tuple(sorted(found, key=lambda owner: (owner.live_bytes, owner.retained_bytes), reverse=True))


def _collect(
    account: AccountStatistics, above: tuple[str, ...], live: dict[tuple[str, ...], int], found: list[OwnerSize]
) -> None:
    path = (*above, account.name)
    # The native meter knows the live bytes of all owners of an account; the other meters only those of open ones.
    held = live.get(path, 0) if account.live_bytes is None else account.live_bytes
    if held > 0 or account.retained_bytes > 0:
        name = " > ".join(path)
        found.append(OwnerSize(name, account.kind, held, account.active, account.started, account.retained_bytes))
    for child in account.children:
        _collect(child, path, live, found)


def sized_containers(count: int = 5) -> tuple[Container, ...]:
    """Return the `count` containers that hold the most, by a sample of their items.

    They have at least 1,000 items, or large objects, of 64 KiB and more each, among them.

    Cost: walks all objects of the collector, some 0.3 s for each million, and two to four times more for the names, for
    two seconds at most: for a report, not for a sampling loop.
    """
    found: list[Any] = [each for each in registered() if isinstance(each, (BoundedDict, BoundedList, WeakCache))]
    sizes = {id(each): _container_bytes(each) for each in found}
    for each, size in sized_largest(4 * count, minimum=_MIN_ITEMS):
        if id(each) not in sizes:
            sizes[id(each)] = size
            found.append(each)
    each = None  # or it would be among the holders
    parts = _parts_of(found)
    found = [each for each in found if id(each) not in parts]
    largest = sorted((each for each in found if sizes[id(each)]), key=lambda each: sizes[id(each)], reverse=True)
    del largest[count:]
    found.clear()  # or it would be among the holders
    paths = paths_to(largest, timeout=_NAMING_TIMEOUT_S)
    return tuple(_describe(each, sizes[id(each)], path) for each, path in zip(largest, paths, strict=True))


def _parts_of(containers: list[Any]) -> set[int]:
    """Return the ids of the tables that belong to bounded dictionaries."""
    return {id(table) for each in containers if isinstance(each, BoundedDict) for table in _tables(each)}


def _tables(container: Any) -> list[Any]:
    return container._tables()  # type: ignore[no-any-return]  # any: a dict of anything


def _container_bytes(container: Any) -> int:
    if isinstance(container, WeakCache):
        statistics: Any = container.statistics()
        return int(statistics.strong_bytes or 0)
    return shallow_size(container)


def _describe(container: Any, size_bytes: int, path: ReferrerPath) -> Container:
    holder = _nearest_name(path)
    kind = type(container).__name__
    bound = _bound_of(container)
    return Container(holder or f"a {kind}", kind, len(container), size_bytes, source_line(holder), bool(bound), bound)


def _nearest_name(path: ReferrerPath) -> str:
    # A list in a dict is known by the nearest holder that has a name.
    named = (
        holder.removeprefix("class ") for holder in path.holders if "." in holder and not _IS_NO_NAME.search(holder)
    )
    return next(named, "")


def _bound_of(container: Any) -> str:
    if isinstance(container, (BoundedDict, BoundedList)):
        bounded: Any = container  # pyright: ignore[reportUnknownVariableType]  # of anything
        return f"maxlen={bounded.maxlen}, keep={bounded.keep}" if bounded.maxlen else f"max_bytes={bounded.max_bytes}"
    if isinstance(container, WeakCache):
        return "strong="
    return f"maxlen={container.maxlen}" if type(container) is deque and container.maxlen is not None else ""


def pending_tasks() -> tuple[PendingTasks, ...]:
    """Return the tasks that have not ended, the most frequent first; from any thread."""
    asyncio: Any = sys.modules.get("asyncio.tasks")  # Any: the table behind `all_tasks` has no public name
    if asyncio is None:
        return ()
    counted: Counter[tuple[str, str]] = Counter()
    for task in _all_tasks(asyncio):
        if not task.done():
            coroutine: Any = task.get_coro()
            counted[str(getattr(coroutine, "__qualname__", "a coroutine")), _waiting_line(coroutine)] += 1
    return tuple(PendingTasks(name, tasks, place) for (name, place), tasks in counted.most_common())


def _all_tasks(asyncio: Any) -> list[Any]:
    # Not `all_tasks()`, which returns the tasks of one loop. The table has another name before Python 3.12; eager tasks
    # have one of their own since. From 3.14 on it holds what is no task of asyncio's own: those are in lists of their
    # threads, and only a walk over all objects finds them.
    tasks = _copy(getattr(asyncio, "_scheduled_tasks", None) or getattr(asyncio, "_all_tasks", ()))
    if sys.version_info >= (3, 14):
        kinds = (asyncio.Task, asyncio._PyTask)
        tasks += [one for one in all_objects() if issubclass(real_type(one), kinds)]
    return list({id(task): task for task in tasks}.values())


def _copy(table: Any) -> list[Any]:
    for _ in range(100):
        try:
            return list(table)
        except RuntimeError:  # another thread has added a task meanwhile
            continue
    return []


def _waiting_line(coroutine: Any) -> str:
    # The innermost await of the program itself: where asyncio waits inside of it says nothing.
    frame: Any = None
    for _ in range(_MAX_AWAIT_DEPTH):
        found = getattr(coroutine, "cr_frame", None)
        if found is None:
            break
        if frame is None or not found.f_code.co_filename.startswith(_ASYNCIO):
            frame = found
        coroutine = getattr(coroutine, "cr_await", None)
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
