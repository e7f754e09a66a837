"""What a process says of itself when it is asked: its report, its leaks, its heap, its owners.

Everything is made in a thread that is neither the program's nor the monitor's, and waits in `wait`, which ends early
when the program ends.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from memtools._records import as_dict, record
from memtools.analysis._growth_by_call import find_leftovers
from memtools.black_box._last_words import count_containers, grown_containers, longest_containers, may_count, names_of
from memtools.heap._inspect import length_of, real_type, type_name
from memtools.heap._largest import sized_largest
from memtools.heap._why_alive import paths_to
from memtools.leaks._investigate import MIN_DURATION_S, investigate
from memtools.ledger import AccountStatistics, native_reason, statistics
from memtools.readings import Reading, take_reading
from memtools.units import format_size

Wait = Callable[[float], object]  # a true result ends the answer early

_MAX_CONTAINERS: Final = 8
_MAX_OWNERS: Final = 30
_NAMING_TIMEOUT_S: Final = 2.0
_CENSUS_BYTES: Final = 80  # of a census, for each object


def answer(
    word: str, seconds: float, *, report: Callable[[], str] | None, wait: Wait
) -> dict[str, Any]:  # Any: what JSON can hold
    """Return the answer to a question: `lines` for a reader, `found` for a program, or `refused`.

    Args:
        word: what is asked; it comes from outside.
        seconds: for how long to observe.
        report: returns the report; None where there is none.
        wait: waits for so many seconds.
    """
    reading = take_reading()
    found: dict[str, object]
    if word == "report" and report is not None:
        lines = report().splitlines()
        found = {}
    elif word == "leaks":
        diagnosis = investigate(duration=max(seconds, MIN_DURATION_S), wait=wait)
        lines, found = list(diagnosis.lines()), diagnosis.to_dict()
    elif word == "heap":
        lines, found = _heap(reading, seconds, wait)
    elif word == "owners":
        lines, found = _owners(seconds, wait)
    else:
        return {"refused": "this process does not know that question"}
    return {
        "word": word,
        "seconds": seconds,
        "used_bytes": reading.used_bytes,
        "limit_bytes": reading.limit_bytes,
        "lines": lines,
        "found": found,
    }


def _heap(reading: Reading, seconds: float, wait: Wait) -> tuple[list[str], dict[str, object]]:
    if not may_count(reading) or not _has_room_for_census(reading):
        return ["too little memory is left to count the heap, or it has too many objects"], {}
    before = count_containers()
    wait(seconds)
    after = count_containers()
    grown, longest = grown_containers(before, after), longest_containers(after)
    largest = [{"name": name, "items": items, "bytes": size} for name, items, size in _largest()]
    lines = [f"growing in {seconds:g} s: {text}" for text in grown] or [
        f"no container and no type of objects has grown noticeably in {seconds:g} s"
    ]
    lines += [f"largest: {name}, {items:,} items, {format_size(size)}" for name, items, size in _named(largest)]
    lines += [f"longest: {text}" for text in longest]
    return lines, {"growing": grown, "longest": longest, "largest": largest}


def _has_room_for_census(reading: Reading) -> bool:
    if reading.limit_bytes is None:
        return True
    return reading.limit_bytes - reading.used_bytes > sys.getallocatedblocks() * _CENSUS_BYTES


def _largest() -> Iterator[tuple[str, int, int]]:
    """Yield the names or holders of the containers that hold most, their lengths, and bytes, items included."""
    sized = sized_largest(_MAX_CONTAINERS)
    names = names_of({id(each) for each, _ in sized})
    figures = [(type_name(real_type(each)), names.get(id(each), ""), length_of(each), size) for each, size in sized]
    unnamed: list[Any] = [each for each, _ in sized if id(each) not in names]  # Any: foreign objects
    sized.clear()  # or it would be among the holders
    paths = iter(paths_to(unnamed, timeout=_NAMING_TIMEOUT_S))
    unnamed.clear()
    for kind, name, items, size in figures:
        yield f"{kind} {name}" if name else f"{kind} <- {next(paths)}", items, size


def _named(largest: Iterable[dict[str, Any]]) -> Iterator[tuple[str, int, int]]:
    for each in largest:
        yield each["name"], each["items"], each["bytes"]


@record
class OwnerChange:
    """What the owners of one name and place did while they were observed.

    Attributes:
        name: names from the outermost owner down.
        kind: `"scope"`, `"call"` or `"task"`.
        live_bytes: what is alive of them and those below; None where the meter does not know.
        change_bytes: by how much that has changed.
        active: how many are open.
        calls: how many have ended meanwhile.
        per_call_bytes: what each of these has left alive, on average; 0 where none has ended.
    """

    name: str
    kind: str
    live_bytes: int | None
    change_bytes: int
    active: int
    calls: int
    per_call_bytes: int


def _owners(seconds: float, wait: Wait) -> tuple[list[str], dict[str, object]]:
    before = statistics().accounts
    begun = time.monotonic()
    wait(seconds)
    after = statistics().accounts
    changes = sorted(owner_changes(before, after), key=lambda each: (-abs(each.change_bytes), -(each.live_bytes or 0)))
    leftovers = find_leftovers(after)
    lines = [_owner_line(each) for each in changes[:_MAX_OWNERS]]
    if len(changes) > _MAX_OWNERS:
        lines.append(f"and {len(changes) - _MAX_OWNERS:,} more, which have changed less")
    lines += [
        f"leaves memory behind: {left.name}: {format_size(left.per_call_bytes)} a call; {left.calls:,} calls, "
        f"{format_size(left.live_after_end_bytes)} still alive"
        for left in leftovers
    ]
    reason = native_reason()
    if reason:
        lines.append(f"without the native ledger live bytes are not known: {reason}")
    if not changes:
        lines.insert(0, "no scope, task or call that memtools knows has been open")
    return lines, {
        "observed_s": round(time.monotonic() - begun, 1),
        "owners": [as_dict(each) for each in changes[:_MAX_OWNERS]],
        "leftovers": [left.to_dict() for left in leftovers],
    }


def owner_changes(before: Iterable[AccountStatistics], after: Iterable[AccountStatistics]) -> Iterator[OwnerChange]:
    """Yield what has changed from one moment to another, for each account of the later one."""
    known = dict(_by_path(before, ()))
    for path, now in _by_path(after, ()):
        then = known.get(path)
        live = now.retained_bytes if now.live_bytes is None else now.live_bytes
        left = now.retained_bytes if now.live_after_end_bytes is None else now.live_after_end_bytes
        calls, past_live, past_left = now.started - now.active, 0, 0
        if then is not None:
            calls -= then.started - then.active
            past_live = then.retained_bytes if then.live_bytes is None else then.live_bytes
            past_left = then.retained_bytes if then.live_after_end_bytes is None else then.live_after_end_bytes
        per_call = round((left - past_left) / calls) if calls > 0 else 0
        name = " > ".join(name for _, name in path)
        yield OwnerChange(name, now.kind, now.live_bytes, live - past_live, now.active, max(calls, 0), per_call)


def _by_path(
    accounts: Iterable[AccountStatistics], above: tuple[tuple[str, str], ...]
) -> Iterator[tuple[tuple[tuple[str, str], ...], AccountStatistics]]:
    for account in accounts:
        path = (*above, (account.kind, account.name))
        yield path, account
        yield from _by_path(account.children, path)


def _owner_line(change: OwnerChange) -> str:
    held = "" if change.live_bytes is None else f" holds {format_size(change.live_bytes)}"
    sign = "+" if change.change_bytes >= 0 else "-"
    parts = [f"{change.name}{held}, {sign}{format_size(abs(change.change_bytes))} meanwhile"]
    if change.active:
        parts.append(f"{change.active:,} open")
    if change.calls:
        left = f", each has left {format_size(change.per_call_bytes)}" if change.per_call_bytes >= 1 else ""
        parts.append(f"{change.calls:,} ended{left}")
    return "; ".join(parts)
