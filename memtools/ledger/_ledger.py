"""Open and end owners: the one place where tree, turn, meter and account meet.

Covers: where an owner hangs, who is active in the context, the accounts of the process. The plain
case of the native meter, an owner that is like many before it, goes a quick way in C (`native/book.c`), which keeps the
same books; all else, and everything where that was not built, is here.
Leaves to others: counting (the meters), following steps (`_driver`, `_frames`), what happens at a budget (`scopes`).

Threads: opening and ending are safe from any thread. Cost: see docs/performance.md, drivers.
"""

import os
import sys
import threading
import time
import weakref
from math import inf
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from memtools._records import record
from memtools.events import ScopeEnded, emit, has_listeners
from memtools.ledger import _frames, _threads
from memtools.ledger._context import active, active_owner, current_task, current_tracker, get_active, per_thread
from memtools.ledger._owner import (
    MAX_NAME_LENGTH,
    Account,
    AccountStatistics,
    Budget,
    Kind,
    Owner,
    Usage,
    UsageTuple,
    held_by_open,
    native_seats,
)
from memtools.ledger.meters._choose import Meter, choose_meter, made_meters
from memtools.ledger.meters._rss import resident_lately, resident_or_zero

if TYPE_CHECKING:
    from memtools.ledger._coroutines import TrackedCoroutine


# What an owner has used, up to now or in the end. Leaves to others: counting (the meters), the record (`_usage`).


def current_usage(owner: Owner) -> Usage:
    """Return what the owner used so far, or in the end."""
    return Usage(*usage_tuple(owner))


def usage_tuple(owner: Owner) -> UsageTuple:
    """Return the same as a plain tuple, the fields of a `Usage`, which takes a tenth of the time."""
    return owner.final or _figures(owner)


def _figures(owner: Owner) -> UsageTuple:
    meter = owner.meter
    live, peak = (int(owner.live), int(owner.peak)) if owner.ended else meter.look(owner)
    allocated = owner.allocated
    now = time.perf_counter()
    resident = resident_lately(now) if reads_lately(meter, owner.budget) else resident_or_zero()
    return UsageTuple(
        name=owner.name,
        retained_bytes=live,
        peak_bytes=peak,
        allocated_bytes=allocated,
        freed_bytes=None if allocated is None else allocated - live,
        resident_delta_bytes=resident - owner.resident,
        duration_s=now - owner.opened_at,
        steps=0 if owner.driver is None else owner.steps,
        meter=meter.name,
        exact=not owner.note,
        note=owner.note,
    )


def reads_lately(meter: Meter, budget: Budget | None) -> bool:
    """Return whether the resident size may be a millisecond old: one reading takes as long as all else together."""
    return meter.tells_threads_apart and (budget is None or budget.measure != "rss")


# The quick way to open and end an owner that is like many before it: in C (`native/book.c`), or there is none.
#
# Leaves to others: what is to be done for an owner, the quick way or the long one (`_book`).

# ruff: noqa: ARG001  # the signatures are those in C


_native = native_seats()
if TYPE_CHECKING or _native is None:
    # Any: whatever a coroutine returns, and what the book is written with.

    def open_plain(
        meter: "Meter", kind: "Kind", name: str, include_children: bool, driver: "TrackedCoroutine[Any] | None", /
    ) -> "Owner | None":
        """Open an owner of the native meter below the active one; return None, and do nothing, if it is not plain."""

    def settle_plain(owner: "Owner", failed: bool, back: "Owner | None", /) -> bool:
        """End an owner of the native meter and tell; return False, and do nothing, if it is not plain."""
        return False

    def keep_book(*books: Any) -> None:
        """Say where the books are, and who is told of what is rare."""

    def keep_root(root: "Account", /) -> None:
        """Say which account is above all others."""

else:
    open_plain = _native.open_plain
    settle_plain = _native.settle_plain
    keep_book = _native.keep_book
    keep_root = _native.keep_root

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
        refused_blocks: how many blocks budgets have refused; 0 with meters that cannot refuse.
    """

    accounts: tuple[AccountStatistics, ...]
    open_owners: int
    unattributed_bytes: dict[str, int]
    refused_blocks: int = 0


def open_owner(
    name: str,
    kind: Kind,
    *,
    meter: Meter | None = None,
    include_children: bool = True,
    budget: Budget | None = None,
    adrift: str = "",
    driver: "TrackedCoroutine[Any] | None" = None,
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
    if budget is None and not adrift and not is_layered and binds:
        plain = open_plain(meter, kind, name, include_children, driver)
        if plain is not None:
            return plain

    parent = active_owner()
    meter.hold()
    owner = _enlist(name, kind, meter, parent, include_children, budget, adrift, is_layered)
    if driver is not None:
        owner.driver = weakref.ref(driver)
        owner.steps_before = driver.steps - 1  # the present step counts

    if binds:
        active.set(owner)
    owner.opened_at = now = time.perf_counter()
    owner.resident = resident_lately(now) if reads_lately(meter, budget) else resident_or_zero()
    owner.neighbours = _threads.look() if meter.follows and not meter.tells_threads_apart else None
    meter.enter(owner, per_thread.slot, _payer(parent, meter), is_task)
    return owner


def _enlist(
    name: str,
    kind: Kind,
    meter: Meter,
    parent: Owner | None,
    include_children: bool,
    budget: Budget | None,
    adrift: str,
    is_layered: bool,
) -> Owner:
    with _lock:
        above = parent.account if parent is not None else _root
        account = above.children.get((kind, name))
        if account is None:
            name = _presentable(name)
            account = above.below(kind, name)
        owner = Owner(name, kind, meter, parent, account, include_children, budget, adrift != "")
        owner.is_layered = is_layered
        if budget is not None:
            owner.ceiling = budget.ceiling
        if parent is not None and parent.is_layered and parent.account is account:
            parent.is_layered = False  # the next call of that name is another one
            owner.is_counted = False
        else:
            account.entered += 1
            account.active += 1
        account.meter = meter.name
        _open[id(owner)] = owner

    if parent is not None:
        _forget_ended_above(parent)
        # Without a call below itself further up, an account just below is that of no owner above.
        if account.parent is not above or parent.nested:
            owner.nested = _stands_below_itself(owner)
        owner.budgeted = parent.budgeted
    if owner.ceiling != inf:
        owner.budgeted = owner
    owner.charged = owner if meter.follows and not adrift else parent and parent.charged
    owner.note = adrift
    return owner


def end_owner(owner: Owner, *, failed: bool = False, back: Owner | None = None) -> Usage:
    """End the owner as `close_owner` does, and return its final usage."""
    close_owner(owner, failed=failed, back=back)
    return current_usage(owner)


def close_owner(owner: Owner, *, failed: bool = False, back: Owner | None = None) -> None:
    """End the owner: stop counting, settle its account, tell the event; a second call does nothing.

    Args:
        owner: who ends.
        failed: whether it ends with an exception.
        back: who gets the turn, where that is not the one who had it before.
    """
    if not settle_plain(owner, failed, back) and _settle(owner, failed, back) and has_listeners():
        _tell(owner, failed)


def _settle(owner: Owner, failed: bool, back: Owner | None) -> bool:
    if owner.final is not None:
        return False
    meter = owner.meter
    outer, active_after = owner.turn.let_go(owner) if owner.turn else (owner.outer, owner.parent)
    if back is not None and back is not owner:
        outer = back
    while outer is not None and outer.ended:
        outer = outer.outer
    owner.outer = outer
    meter.leave(owner, per_thread.slot, outer)
    if get_active() is owner:
        active.set(active_after)

    with _lock:
        if owner.ended:
            return False  # another thread was first
        owner.ended = True
        owner.charged = owner.budgeted = None  # it may be its own: a cycle
        if owner.neighbours is not None and not owner.note and _threads.have_run_since(owner.neighbours):
            owner.note = "other threads ran meanwhile"
        final = owner.final = usage_tuple(owner)
        _settle_account(owner, final, failed)
        if owner.parent is not None:
            _note_child(owner.parent, owner.name, final)
        _open.pop(id(owner), None)
        _mark(owner.account)
    meter.release()
    return True


def _tell(owner: Owner, failed: bool) -> None:
    usage = current_usage(owner)
    emit(
        ScopeEnded(
            owner.name, owner.kind, owner.path, usage.retained_bytes, usage.peak_bytes, usage.resident_delta_bytes,
            usage.duration_s, usage.meter, usage.exact, failed,
        )
    )  # fmt: skip


def open_owners() -> tuple[Owner, ...]:
    """Return the owners that are open now, in order of their opening."""
    with _lock:
        return tuple(_open.values())


def statistics() -> LedgerStatistics:
    """Return accounts, open owners and what nobody is charged with."""
    with _lock:
        figures: dict[int, list[tuple[float, float, str]]] = {}
        still_open = tuple(_open.values())
        for owner in still_open:
            live, peak = owner.meter.look(owner)
            figures.setdefault(id(owner.account), []).append((live, peak, owner.note))
        held = held_by_open(still_open)
        return LedgerStatistics(
            accounts=_root.entries_below(figures, held),
            open_owners=len(_open),
            unattributed_bytes={meter.name: meter.unattributed_bytes for meter in made_meters()},
            refused_blocks=sum(getattr(meter, "refused_blocks", 0) for meter in made_meters()),
        )


def forget_accounts() -> None:
    """Drop what ended owners have left in the accounts; open owners begin new ones."""
    global _root
    with _lock:
        _root = Account("process", "process")
        keep_root(_root)
        for owner in tuple(_open.values()):
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


def _forget_ended_above(owner: Owner) -> None:
    # A task that starts its successor and ends, for ever: without this each would keep all that came before.
    while owner.parent is not None and owner.parent.ended:
        owner.parent = owner.parent.parent


def _stands_below_itself(owner: Owner) -> bool:
    above = owner.parent
    while above is not None:
        if above.account is owner.account and not above.ended:
            return True
        above = above.parent
    return False


def _mark(account: Account) -> None:
    with _lock:
        if account.is_at_a_mark:
            account.mark(held_by_open(tuple(_open.values())))


def _note_child(parent: Owner, name: str, final: UsageTuple) -> None:
    with _lock:
        largest, peak = parent.largest, final.peak_bytes
        if not peak or (len(largest) == _MOST_CHILDREN and peak <= largest[-1][1]):
            return
        peaks = dict(largest)
        peaks[name] = max(peak, peaks.get(name, 0))
        ordered = sorted(peaks.items(), key=lambda child: child[1], reverse=True)
        parent.largest = tuple(ordered[:_MOST_CHILDREN])


def _settle_account(owner: Owner, final: UsageTuple, failed: bool) -> None:
    account, peak, note = owner.account, final.peak_bytes, final.note
    if peak > account.peak:
        account.peak = peak
    if note and not account.note:
        account.note = note
    if owner.is_counted:
        account.active -= 1
        account.ended += 1
        account.failed += failed
        account.steps += final.steps
        account.peak_sum += peak
    if not owner.nested:
        account.retained += final.retained_bytes
        account.duration_s += final.duration_s


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for meter in made_meters():
        meter.after_fork(per_thread.slot)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# Open an owner where a `with` stands, and have it followed by whoever can.
#
# Four answers to "who takes the turn back when the code inside the `with` is suspended?":
#
# - nobody has to: a plain function runs to its end;
# - the driver of the task (`_driver`), where there is one;
# - the interpreter's events for the frame that holds the `with` (`_frames`, Python 3.12 and later);
# - nobody can: the owner is adrift, its figures are the whole process's and say so.
#
# What holds the `with` is the frame whose suspension suspends the block: not the generator behind a `@contextmanager` and
# not `ExitStack`, but the function that uses them.

NOBODY_FOLLOWS: Final = "process-wide: nobody follows this task's steps (see memtools.track_tasks)"
# inspect.CO_GENERATOR | CO_ASYNC_GENERATOR, and CO_COROUTINE | CO_ITERABLE_COROUTINE: the language's own numbers;
# importing inspect for them would cost more than all of memtools.
_GENERATOR: Final = 0x20 | 0x200
_COROUTINE: Final = 0x80 | 0x100


def open_for_frame(
    name: str,
    kind: Kind,
    frame: FrameType,
    *,
    meter: Meter,
    include_children: bool = True,
    budget: Budget | None = None,
) -> Owner:
    """Open an owner for the block of a `with` that is entered in `frame` or in what `frame` works for.

    Args:
        name: what reports call it.
        kind: `"scope"`, `"call"` or `"task"`.
        frame: where `__enter__` or `__aenter__` was called.
        meter: who counts.
        include_children: whether owners below count into its figures.
        budget: what it may use.
    """
    if not meter.follows:
        return open_owner(name, kind, meter=meter, include_children=include_children, budget=budget)

    holder = _holder_of(frame)
    flags = holder.f_code.co_flags
    is_generator = bool(flags & _GENERATOR) and not flags & _COROUTINE
    driver = current_tracker()
    needs_frame = is_generator or (bool(flags & _COROUTINE) and driver is None)
    follows_frame = needs_frame and _frames.can_follow()

    # Asked before the opening: what the question costs is not the owner's.
    may_be_for_caller = not needs_frame and driver is None and _will_be_mistrusted()

    active_before = active.get()
    owner = open_owner(
        name,
        kind,
        meter=meter,
        include_children=include_children,
        budget=budget,
        adrift=NOBODY_FOLLOWS if needs_frame and not follows_frame else "",
        driver=driver,
        # Unfollowed in a generator, it would stay active in its consumer.
        binds=follows_frame or not is_generator,
    )
    if follows_frame:
        _frames.hold(holder, owner, active_before)
    elif may_be_for_caller:
        per_thread.slot.unwatched.append(owner)
    return owner


def _holder_of(frame: FrameType) -> FrameType:
    here = frame
    while here.f_back is not None and (_is_between(here) or _is_context_generator(here)):
        here = here.f_back
    return here


def _is_between(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "")
    return module == "contextlib" or (isinstance(module, str) and module.startswith("memtools."))


def _is_context_generator(frame: FrameType) -> bool:
    if not frame.f_code.co_flags & _GENERATOR or frame.f_back is None:
        return False
    return frame.f_back.f_globals.get("__name__") == "contextlib"


def _will_be_mistrusted() -> bool:
    # A plain function may open a scope on behalf of the task that it runs in. When the loop gets its turn while the
    # scope is still open, the task has been suspended, and nobody has told us. One question is enough for all scopes
    # until then.
    slot = per_thread.slot
    while slot.unwatched and slot.unwatched[-1].ended:
        slot.unwatched.pop()
    loop, call_soon = _running_loop()
    asked = slot.asked_loop
    if loop is not None and (asked is None or asked() is not loop):
        slot.asked_loop = weakref.ref(loop)
        call_soon(_mistrust)
    return loop is not None


def _mistrust() -> None:
    slot = per_thread.slot
    slot.asked_loop = None
    while slot.unwatched:
        owner = slot.unwatched.pop()
        owner.meter.set_adrift(owner, NOBODY_FOLLOWS)


def _running_loop() -> Any:
    """Return the loop that runs a task in this thread, and how to be called back by it; (None, None) if none does."""
    # Any: neither library is imported here, only found.
    if current_task() is not None:
        loop: Any = sys.modules["asyncio"].get_running_loop()
        return loop, loop.call_soon
    trio: Any = sys.modules.get("trio")
    if trio is not None:
        try:
            token = trio.lowlevel.current_trio_token()
        except RuntimeError:  # not inside of trio
            return None, None
        return token, token.run_sync_soon
    return None, None


# Give an open owner another name: for those who learn only on the way what they are charging.
#
# A web server's request is known by its route, and that is found in the middle of the request. Leaves to others: opening
# and ending (`_book`), who asks for it (`memtools.integrations`).
#
# The account of the old name stays, so that the next one who is to be renamed is opened quickly; whoever lists accounts
# leaves it out while nobody is counted there.


def rename_owner(owner: Owner, name: str) -> None:
    """Call an open owner `name` from now on, and count it in the account of that name, from its beginning.

    What was opened below it before stays where it is. Nothing happens to an owner that has ended. Safe from any thread.

    Args:
        owner: who is renamed.
        name: what reports call it; cut and escaped as in `open_owner`.
    """
    name = _presentable(name)
    with _lock:
        before = owner.account
        if owner.ended or before.parent is None or name == owner.name:
            return
        owner.name = name
        account = owner.account = before.parent.below(owner.kind, name)
        account.meter = owner.meter.name
        for changed, by in ((before, -owner.is_counted), (account, owner.is_counted)):
            changed.entered += by
            changed.active += by
        owner.meter.join(owner)


keep_book(Owner, UsageTuple, active, _open, resident_or_zero, _note_child, _mark, has_listeners, _tell, "native")
keep_root(_root)
