"""Open and end owners: the one place where tree, turn, meter and account meet.

Covers: where an owner hangs, who is active in the context, what its `Usage` is, the accounts of the process.
Leaves to others: counting (the meters), following steps (`_driver`, `_frames`), what happens at a budget (`scopes`).

Threads: opening and ending are safe from any thread. Cost: see docs/performance.md, drivers.
"""

import os
import threading
import time
import weakref
from math import inf
from typing import TYPE_CHECKING, Any, Final

from memtools.events import ScopeEnded, emit, is_heard
from memtools.ledger import _neighbours
from memtools.ledger._accounts import MAX_NAME_LENGTH, Account, Entry
from memtools.ledger._budget import Budget
from memtools.ledger._current import active, active_owner, per_thread
from memtools.ledger._meters import Meter, choose_meter, made_meters
from memtools.ledger._open_holdings import held_by_open
from memtools.ledger._owner import Kind, Owner
from memtools.ledger._resident import resident_or_zero
from memtools.ledger._usage import Usage
from memtools.records import record

if TYPE_CHECKING:
    from memtools.ledger._driver import Driven

_MOST_CHILDREN: Final = 3  # as many as a warning names

_lock = threading.RLock()
_open: dict[int, Owner] = {}
_root = Account("process", "process")


@record
class LedgerStatistics:
    """What the ledger knows at one moment.

    Attributes:
        accounts: the tree of accounts, outermost first.
        open_owners: how many owners are open.
        unattributed_bytes: bytes added by nobody's turn, for each meter in use.
    """

    accounts: tuple[Entry, ...]
    open_owners: int
    unattributed_bytes: dict[str, int]


def open_owner(
    name: str,
    kind: Kind,
    *,
    meter: Meter | None = None,
    include_children: bool = True,
    budget: Budget | None = None,
    adrift: str = "",
    driver: "Driven[Any] | None" = None,
    is_task: bool = False,
    is_layered: bool = False,
    binds: bool = True,
) -> Owner:
    """Open an owner below the active one and give it the turn on this thread.

    Args:
        name: what reports call it; cut to 200 characters, with escapes for what cannot be printed.
        kind: `"scope"`, `"call"` or `"task"`.
        meter: who counts; by default `choose_meter()`.
        include_children: whether owners below count into its figures.
        budget: what it may use.
        adrift: why nobody can follow its steps, empty where somebody does.
        driver: who follows its steps and counts them, if anybody has to.
        is_task: whether the owner stands for a task of its own, beside its parent and not inside it.
        is_layered: whether the call that it stands for goes through a further owner of the same name: one call then,
            and not two.
        binds: whether it becomes the active owner of the context.
    """
    meter = meter or choose_meter()
    name = _presentable(name)
    parent = active_owner()
    meter.hold()
    with _lock:
        account = (parent.account if parent is not None else _root).below(kind, name)
        owner = Owner(
            name, kind, meter, parent, account, include_children, budget, bool(adrift)
        )
        owner.is_layered = is_layered
        if budget is not None:
            owner.ceiling = budget.ceiling
        if parent is not None and parent.is_layered and parent.account is account:
            parent.is_layered = False  # the next call of that name is another one
            owner.is_counted = False
        account.entered += owner.is_counted
        account.active += owner.is_counted
        account.meter = meter.name
        _open[id(owner)] = owner

    if parent is not None:
        _forget_ended_above(parent)
        owner.nested = _stands_below_itself(owner)
    above = parent.budgeted if parent is not None else None
    owner.budgeted = owner if owner.ceiling != inf else above
    owner.charged = owner if meter.follows and not adrift else parent and parent.charged
    owner.note = adrift
    if driver is not None:
        owner.driver = weakref.ref(driver)
        owner.steps_before = driver.steps - 1  # the present step counts

    if binds:
        active.set(owner)
    owner.opened_at = time.perf_counter()
    owner.resident = resident_or_zero()
    owner.neighbours = _neighbours.look() if meter.follows and not meter.tells_threads_apart else None
    meter.enter(owner, per_thread.slot, _payer(parent, meter), is_task)
    return owner


def end_owner(owner: Owner, *, failed: bool = False, back: Owner | None = None) -> Usage:
    """End the owner: stop counting, settle its account, tell the event; a second call returns the same usage.

    Args:
        owner: who ends.
        failed: whether it ends with an exception.
        back: who gets the turn, where that is not the one who had it before.
    """
    if owner.usage is not None:
        return owner.usage

    outer, active_after = owner.turn.let_go(owner) if owner.turn else (owner.outer, owner.parent)
    if back is not None and back is not owner:
        outer = back
    owner.outer = _still_open(outer)
    owner.meter.leave(owner, per_thread.slot, owner.outer)
    if active.get() is owner:
        active.set(active_after)

    with _lock:
        if owner.ended:
            return usage_of(owner)  # another thread was first
        owner.ended = True
        owner.charged = owner.budgeted = None  # it may be its own: a cycle
        if not owner.note and owner.neighbours is not None and _neighbours.have_run_since(owner.neighbours):
            owner.note = "other threads ran meanwhile"
        usage = owner.usage = usage_of(owner)
        _settle_account(owner, usage, failed)
        if owner.parent is not None and usage.peak_bytes:
            _note_child(owner.parent, usage)
        _open.pop(id(owner), None)
        if owner.account.is_at_a_mark:
            owner.account.mark(held_by_open(_open.values()))
    owner.meter.release()

    if is_heard():
        emit(
            ScopeEnded(
                owner.name, owner.kind, owner.path, usage.retained_bytes, usage.peak_bytes, usage.resident_delta_bytes,
                usage.duration_s, usage.meter, usage.exact, failed,
            )
        )  # fmt: skip
    return usage


def usage_of(owner: Owner) -> Usage:
    """Return what the owner used so far, or in the end."""
    if owner.usage is not None:
        return owner.usage
    live, peak = (int(owner.live), int(owner.peak)) if owner.ended else owner.meter.look(owner)
    return Usage(
        name=owner.name,
        retained_bytes=live,
        peak_bytes=peak,
        allocated_bytes=owner.allocated,
        freed_bytes=None if owner.allocated is None else owner.allocated - live,
        resident_delta_bytes=resident_or_zero() - owner.resident,
        duration_s=time.perf_counter() - owner.opened_at,
        steps=owner.steps,
        meter=owner.meter.name,
        exact=not owner.note,
        note=owner.note,
    )


def open_owners() -> tuple[Owner, ...]:
    """Return the owners that are open now, in order of their opening."""
    with _lock:
        return tuple(_open.values())


def statistics() -> LedgerStatistics:
    """Return accounts, open owners and what nobody is charged with."""
    with _lock:
        figures: dict[int, list[tuple[float, float, str]]] = {}
        for owner in _open.values():
            live, peak = owner.meter.look(owner)
            figures.setdefault(id(owner.account), []).append((live, peak, owner.note))
        held = held_by_open(_open.values())
        return LedgerStatistics(
            accounts=tuple(child.entry(figures, held) for child in _root.children.values()),
            open_owners=len(_open),
            unattributed_bytes={meter.name: meter.unattributed_bytes for meter in made_meters()},
        )


def forget_accounts() -> None:
    """Drop what ended owners have left in the accounts; open owners begin new ones."""
    global _root
    with _lock:
        _root = Account("process", "process")
        for owner in _open.values():
            _forget_ended_above(owner)
            above = owner.parent.account if owner.parent is not None else _root
            owner.account = above.below(owner.kind, owner.name)
            owner.account.active += owner.is_counted
            owner.account.entered += owner.is_counted
            owner.meter.join(owner)


def _presentable(name: str) -> str:
    # Names may come from requests, and go into logs and exceptions: no line break of theirs shall begin a line there.
    name = name[:MAX_NAME_LENGTH]
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def _payer(parent: Owner | None, meter: Meter) -> Owner | None:
    # The nearest one above that is counted by the same meter, followed, and wants its children's figures.
    while parent is not None and (
        parent.ended or parent.adrift or parent.meter is not meter or not parent.include_children
    ):
        parent = parent.parent
    return parent


def _still_open(owner: Owner | None) -> Owner | None:
    while owner is not None and owner.ended:
        owner = owner.outer
    return owner


def _forget_ended_above(owner: Owner) -> None:
    # A task that starts its successor and ends, for ever: without this each would keep all that came before.
    while owner.parent is not None and owner.parent.ended:
        owner.parent = owner.parent.parent


def _stands_below_itself(owner: Owner) -> bool:
    above = owner.parent
    if above is not None and owner.account.parent is above.account:
        return False
    while above is not None:
        if above.account is owner.account and not above.ended:
            return True
        above = above.parent
    return False


def _note_child(parent: Owner, usage: Usage) -> None:
    if len(parent.largest) == _MOST_CHILDREN and usage.peak_bytes <= parent.largest[-1][1]:
        return
    peaks = dict(parent.largest)
    peaks[usage.name] = max(usage.peak_bytes, peaks.get(usage.name, 0))
    ordered = sorted(peaks.items(), key=lambda child: child[1], reverse=True)
    parent.largest = tuple(ordered[:_MOST_CHILDREN])


def _settle_account(owner: Owner, usage: Usage, failed: bool) -> None:
    account = owner.account
    account.peak = max(account.peak, usage.peak_bytes)
    if not account.note:
        account.note = usage.note
    if owner.is_counted:
        account.active -= 1
        account.ended += 1
        account.failed += failed
        account.steps += usage.steps
        account.peak_sum += usage.peak_bytes
    if not owner.nested:
        account.retained += usage.retained_bytes
        account.duration_s += usage.duration_s


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for meter in made_meters():
        meter.after_fork(per_thread.slot)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
