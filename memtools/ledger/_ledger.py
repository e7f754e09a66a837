"""Open and close owners, and update their accounts.

The usual case of the native meter, an owner that is like many before it, takes a fast path in C, which writes the same
records. All else, and everything where the extension was not built, is here.

Opening and closing are safe from any thread.
"""

import sys
import threading
import time
import weakref
from collections.abc import Callable
from math import inf
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from memtools._forks import register_after_fork
from memtools._records import record
from memtools._text import printable
from memtools.events import ScopeEnded, emit, has_listeners
from memtools.ledger import _frames, _threads
from memtools.ledger._context import (
    active_owner,
    active_variable,
    current_context,
    current_task,
    current_tracker,
    get_active,
    per_thread,
    set_active,
)
from memtools.ledger._owner import (
    MAX_NAME_LENGTH,
    OTHERS_RAN,
    Account,
    AccountStatistics,
    Budget,
    Kind,
    Meter,
    Owner,
    Tracker,
    Usage,
    UsageTuple,
    live_bytes_of_open_owners,
    native_module,
)
from memtools.ledger.meters._choose import choose_meter, existing_meters, warn_without_native
from memtools.ledger.meters._rss import cached_rss, rss_or_zero

UNTRACKED: Final = "process-wide: the task is not tracked (see memtools.track_tasks)"

_STACK_FRAMES: Final = 12  # more than opening or closing an owner takes
_MAX_LARGEST_CHILDREN: Final = 3  # as many as a warning names
# inspect.CO_GENERATOR | CO_ASYNC_GENERATOR, and CO_COROUTINE | CO_ITERABLE_COROUTINE: the language's own numbers;
# importing inspect for them would cost more than all of memtools.
_GENERATOR: Final = 0x20 | 0x200
_COROUTINE: Final = 0x80 | 0x100

NameLookup: TypeAlias = Callable[[], tuple[str | None, bool]]

_lock = threading.RLock()
_open: dict[int, Owner] = {}
_root = Account("process", "process")

_native = native_module()
if TYPE_CHECKING or _native is None:
    # ruff: noqa: ARG001  # the signatures are those in C

    def open_fast(
        meter: Meter, kind: Kind, name: str, include_children: bool, tracker: Tracker | None, /
    ) -> Owner | None:
        """Open an owner of the native meter below the active one; return None if the fast path declines."""

    def close_fast(owner: Owner, failed: bool, /) -> bool:
        """Close an owner and notify listeners; return False, with nothing changed, if the fast path declines."""
        return False

    def configure(*records: Any) -> None:  # Any: the records and callables that the fast path uses
        """Set the records and the callables that the fast path uses."""

    def count_budgeted(change: int, /) -> None:
        """Tell that so many more owners are open whose budget is checked after each step."""

    def set_root_account(root: Account, /) -> None:
        """Set the account that is the ancestor of all accounts."""

else:
    open_fast = _native.open_fast
    close_fast = _native.close_fast
    configure = _native.configure
    count_budgeted = _native.count_budgeted
    set_root_account = _native.set_root_account


@record
class LedgerStatistics:
    """What the ledger knows at one moment.

    Attributes:
        accounts: the tree of accounts, outermost first.
        open_owners: how many owners are open.
        unattributed_bytes: bytes added without a current owner, for each meter in use.
        refused_blocks: how many blocks budgets have refused; 0 with meters that cannot refuse.
        ignored_stops: how many owners caught every exception that was to stop them, and were left alone until their
            end; 0 with meters that cannot stop an owner while a step of it runs.
    """

    accounts: tuple[AccountStatistics, ...]
    open_owners: int
    unattributed_bytes: dict[str, int]
    refused_blocks: int = 0
    ignored_stops: int = 0


def current_usage(owner: Owner) -> Usage:
    """Return what the owner used so far, or in the end."""
    return Usage(*usage_tuple(owner))


def usage_tuple(owner: Owner) -> UsageTuple:
    """Return the same as `current_usage` as a named tuple, which takes a tenth of the time."""
    return owner.final_usage or _compute_usage(owner)


def _compute_usage(owner: Owner) -> UsageTuple:
    meter = owner.meter
    live, peak = (int(owner.live), int(owner.peak)) if owner.ended else meter.read(owner)
    allocated = owner.allocated
    now = time.perf_counter()
    resident = cached_rss(now) if accepts_cached_rss(meter, owner.budget) else rss_or_zero()
    return UsageTuple(
        name=owner.name,
        retained_bytes=live,
        peak_bytes=peak,
        allocated_bytes=allocated,
        freed_bytes=None if allocated is None else allocated - live,
        resident_delta_bytes=resident - owner.resident_at_open,
        duration_s=now - owner.opened_at,
        steps=0 if owner.tracker is None else owner.steps,
        meter=meter.name,
        exact=not owner.note,
        note=owner.note,
    )


def accepts_cached_rss(meter: Meter, budget: Budget | None) -> bool:
    """Return whether the resident size may be a millisecond old: one reading takes as long as all else together."""
    return meter.is_per_thread and (budget is None or budget.measure != "rss")


def open_owner(
    name: str,
    kind: Kind,
    *,
    meter: Meter | None = None,
    include_children: bool = True,
    budget: Budget | None = None,
    untracked_reason: str = "",
    tracker: Tracker | None = None,
    is_task: bool = False,
    is_stacked: bool = False,
    activate: bool = True,
    inherited: bool = True,
) -> Owner:
    """Open an owner below the active one and make it the current one of this thread.

    Args:
        name: what reports call it; cut to 200 characters, with escapes for what cannot be printed.
        kind: `"scope"`, `"call"` or `"task"`.
        meter: the meter that counts; by default `choose_meter()`.
        include_children: whether owners below count into its figures.
        budget: what it may use.
        untracked_reason: why its steps cannot be tracked, empty where they are.
        tracker: the tracked coroutine whose steps count for it, if it runs in one.
        is_task: whether the owner stands for a task of its own, beside its parent and not inside it.
        is_stacked: whether the call that it stands for goes through a further owner of the same name: one call then,
            and not two.
        activate: whether it becomes the active owner of the context.
        inherited: whether it stays the active one in copies of the context: in tasks, callbacks and threads.
    """
    meter = meter or choose_meter()
    if budget is None and not untracked_reason and not is_stacked and activate and inherited:
        opened = open_fast(meter, kind, name, include_children, tracker)
        if opened is not None:
            return opened
    if budget is not None:
        warn_without_native()

    _require_stack(_STACK_FRAMES)
    parent = active_owner()
    if parent is not None:
        look_up_name(parent)  # which may be that of another account
    meter.acquire()
    owner = _register(name, kind, meter, parent, include_children, budget, untracked_reason, is_stacked)
    if tracker is not None:
        owner.tracker = weakref.ref(tracker)
        owner.steps_at_open = tracker.steps - 1  # the present step counts

    if activate:
        set_active(owner)
        if not inherited:
            owner.home_context = current_context()
    owner.opened_at = now = time.perf_counter()
    owner.resident_at_open = cached_rss(now) if accepts_cached_rss(meter, budget) else rss_or_zero()
    owner.other_threads_at_open = _threads.snapshot() if meter.tracks_owners and not meter.is_per_thread else None
    meter.start(owner, per_thread.slot, _charging_parent(parent, meter), is_task)
    return owner


def _require_stack(frames: int) -> None:
    # Raises RecursionError before anything has changed, where the stack has no room to open an owner, and to close it.
    if frames:
        _require_stack(frames - 1)


def _register(
    name: str,
    kind: Kind,
    meter: Meter,
    parent: Owner | None,
    include_children: bool,
    budget: Budget | None,
    untracked_reason: str,
    is_stacked: bool,
) -> Owner:
    with _lock:
        above = parent.account if parent is not None else _root
        account = above.children.get((kind, name))
        if account is None:
            name = printable(name, MAX_NAME_LENGTH)
            account = above.child(kind, name)
        owner = Owner(name, kind, meter, parent, account, include_children, budget, untracked_reason != "")
        owner.is_stacked = is_stacked
        if budget is not None:
            owner.limit_bytes_in_flight = budget.limit_bytes_in_flight
        if parent is not None and parent.is_stacked and parent.account is account:
            parent.is_stacked = False  # the next call of that name is another one
            owner.is_counted = False
        else:
            account.started += 1
            account.active += 1
        account.meter = meter.name
        _open[id(owner)] = owner

    if parent is not None:
        _skip_ended_parents(parent)
        # Unless an ancestor is recursive, an account directly below the parent's belongs to no ancestor.
        if account.parent is not above or parent.is_recursive:
            owner.is_recursive = _is_recursive(owner)
        owner.nearest_budgeted = parent.nearest_budgeted
    if owner.limit_bytes_in_flight != inf:
        owner.nearest_budgeted = owner
        count_budgeted(1)
    owner.charged_to = owner if meter.tracks_owners and not untracked_reason else parent and parent.charged_to
    owner.note = untracked_reason
    return owner


def close_owner(owner: Owner, *, failed: bool = False, next_owner: Owner | None = None) -> None:
    """Close the owner: stop counting, update its account, emit the event; a second call does nothing.

    What it used is in `owner.usage` afterwards.

    Args:
        owner: the owner to close.
        failed: whether it ends with an exception.
        next_owner: the owner of the tracemalloc meter that becomes the current one, where that is not the previous one.
    """
    if not close_fast(owner, failed) and _close(owner, failed, next_owner) and has_listeners():
        _emit_ended(owner, failed)


def _close(owner: Owner, failed: bool, next_owner: Owner | None) -> bool:
    if owner.final_usage is not None:
        return False
    meter = owner.meter
    previous, active_after = owner.suspension.release(owner) if owner.suspension else (owner.previous, owner.parent)
    if next_owner is not None and next_owner is not owner:
        previous = next_owner
    while previous is not None and previous.ended:
        previous = previous.previous
    owner.previous = previous
    meter.stop(owner, per_thread.slot, previous)
    if get_active() is owner:
        set_active(active_after)

    with _lock:
        if owner.ended:
            return False  # another thread was first
        owner.ended = True
        if owner.nearest_budgeted is owner:
            count_budgeted(-1)
        owner.charged_to = owner.nearest_budgeted = owner.home_context = owner.look_up_name = (
            None  # each may be part of a cycle
        )
        others = owner.other_threads_at_open
        if others is not None and not owner.note and _threads.ran_since(others):
            owner.note = OTHERS_RAN
        usage = owner.final_usage = usage_tuple(owner)
        _add_to_account(owner, usage, failed)
        if owner.parent is not None:
            _update_largest_children(owner.parent, owner.name, usage)
        _open.pop(id(owner), None)
        _checkpoint(owner.account)
    meter.release()
    return True


def _emit_ended(owner: Owner, failed: bool) -> None:
    usage = usage_tuple(owner)
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
    """Return accounts, open owners and the bytes that no owner is charged with."""
    for owner in open_owners():
        look_up_name(owner)
    with _lock:
        figures: dict[int, list[tuple[float, float, str]]] = {}
        still_open = tuple(_open.values())
        for owner in still_open:
            live, peak = owner.meter.read(owner)
            figures.setdefault(id(owner.account), []).append((live, peak, owner.note))
        return LedgerStatistics(
            accounts=_root.child_statistics(figures, live_bytes_of_open_owners(still_open)),
            open_owners=len(_open),
            unattributed_bytes={meter.name: meter.unattributed_bytes for meter in existing_meters()},
            refused_blocks=sum(getattr(meter, "refused_blocks", 0) for meter in existing_meters()),
            ignored_stops=sum(getattr(meter, "ignored_stops", 0) for meter in existing_meters()),
        )


def all_accounts() -> tuple[Account, ...]:
    """Return every account there is, each after the one above it."""
    with _lock:
        found = [_root]
        for account in found:  # it grows meanwhile
            found.extend(account.children.values())
        return tuple(found)


def forget_accounts() -> None:
    """Drop what ended owners have left in the accounts; open owners begin new ones."""
    global _root
    with _lock:
        _root = Account("process", "process")
        set_root_account(_root)
        for owner in tuple(_open.values()):
            _skip_ended_parents(owner)
            above = owner.parent.account if owner.parent is not None else _root
            owner.account = above.child(owner.kind, _stored_name(owner))
            owner.account.active += owner.is_counted
            owner.account.started += owner.is_counted
            owner.meter.attach_account(owner)


def rename_owner(owner: Owner, name: str) -> None:
    """Call an open owner `name` from now on, and count it in the account of that name, from its beginning.

    For an owner whose name is found while it is open, as the route of a web server's request. Owners that were opened
    below it before stay where they are. The account of the old name stays, so that the next owner of that name is
    opened quickly; `statistics()` leaves it out while no owner is counted there. Nothing happens to an owner that has
    ended. Safe from any thread.

    Args:
        owner: the owner to rename.
        name: what reports call it; cut and escaped as in `open_owner`.
    """
    if len(name) > MAX_NAME_LENGTH or not (name.isascii() and name.isprintable()):
        name = printable(name, MAX_NAME_LENGTH)
    with _lock:
        before = owner.account
        if owner.ended or before.parent is None or name == owner.name:
            return
        owner.name = name
        account = owner.account = before.parent.child(owner.kind, name)
        account.meter = owner.meter.name
        for changed, by in ((before, -owner.is_counted), (account, owner.is_counted)):
            changed.started += by
            changed.active += by
        owner.meter.attach_account(owner)


class _LateNamedOwner(Owner):
    """An owner whose name is looked up when it is read, until it is final."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """What it is called in reports, as far as that is known now."""
        look_up_name(self)
        return _stored_name(self)

    @name.setter
    def name(self, name: str) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]  # it is used as before
        _name_field.__set__(self, name)


# Any: a field in C or a slot, both of which are descriptors.
_name_field: Final[Any] = Owner.name  # type: ignore[misc]  # of the class, not of an owner


def name_late(owner: Owner, look_up: NameLookup) -> None:
    """Look the name of an open owner up when it is read, or an owner is opened below, until the name is final.

    For an owner whose name the program finds while it is open, without saying when. The fast path in C opens no owner
    below it until then.

    Args:
        owner: the owner to name.
        look_up: returns the name, None where it is not known yet, and whether that is final. Called in any thread,
            while the ledger is not locked; it must not raise.
    """
    owner.look_up_name = look_up
    owner.__class__ = _LateNamedOwner


def look_up_name(owner: Owner, *, is_last: bool = False) -> None:
    """Look the name of an owner up, where that is not final; for the last time, if the caller says so."""
    if type(owner) is Owner and not is_last:
        return
    look_up = owner.look_up_name
    owner.__class__ = Owner  # for the look-up, which may read the name
    if is_last:
        owner.look_up_name = None
    if look_up is None:
        return
    name, is_final = look_up()
    if name:
        rename_owner(owner, name)
    if is_final:
        owner.look_up_name = None
    elif owner.look_up_name is not None:  # another thread may have been faster
        owner.__class__ = _LateNamedOwner


def _stored_name(owner: Owner) -> str:
    name: str = _name_field.__get__(owner)
    return name


def _charging_parent(parent: Owner | None, meter: Meter) -> Owner | None:
    # The nearest ancestor that the same meter counts, that is tracked, and that includes its children.
    while parent is not None and (
        parent.ended or parent.is_untracked or parent.meter is not meter or not parent.include_children
    ):
        parent = parent.parent
    return parent


def _skip_ended_parents(owner: Owner) -> None:
    # In an endless chain of tasks, each of which starts the next one and ends, each would keep all earlier ones.
    while owner.parent is not None and owner.parent.ended:
        owner.parent = owner.parent.parent


def _is_recursive(owner: Owner) -> bool:
    above = owner.parent
    while above is not None:
        if above.account is owner.account and not above.ended:
            return True
        above = above.parent
    return False


def _checkpoint(account: Account) -> None:
    with _lock:
        if account.is_checkpoint_due:
            account.checkpoint(live_bytes_of_open_owners(tuple(_open.values()), only=account))


def _update_largest_children(parent: Owner, name: str, usage: UsageTuple) -> None:
    with _lock:
        largest, peak = parent.largest_children, usage.peak_bytes
        if not peak or (len(largest) == _MAX_LARGEST_CHILDREN and peak <= largest[-1][1]):
            return
        peaks = dict(largest)
        peaks[name] = max(peak, peaks.get(name, 0))
        ordered = sorted(peaks.items(), key=lambda child: child[1], reverse=True)
        parent.largest_children = tuple(ordered[:_MAX_LARGEST_CHILDREN])


def _add_to_account(owner: Owner, usage: UsageTuple, failed: bool) -> None:
    account = owner.account
    if usage.peak_bytes > account.peak:
        account.peak = usage.peak_bytes
    if usage.note and not account.note:
        account.note = usage.note
    if owner.is_counted:
        account.active -= 1
        account.ended += 1
        account.failed += failed
        account.steps += usage.steps
        account.peak_sum += usage.peak_bytes
    if not owner.is_recursive:
        account.retained += usage.retained_bytes
        account.duration_s += usage.duration_s


def open_for_frame(
    name: str,
    kind: Kind,
    frame: FrameType,
    *,
    meter: Meter,
    include_children: bool = True,
    budget: Budget | None = None,
    inherited: bool = True,
) -> Owner:
    """Open an owner for the block of a `with` that is entered in `frame`, or in a function that `frame` works for.

    While the code inside the `with` is suspended, the owner must not be charged. Five cases:

    - a plain function runs to its end, so nothing has to be done;
    - with the native meter a coroutine needs nothing either: its context is suspended with it;
    - a tracked coroutine suspends its owners itself;
    - a generator shares the context of its consumer: the interpreter's events for the frame that contains the `with`
      suspend the owner (Python 3.12 and later); the same for a coroutine with the tracemalloc meter;
    - otherwise the owner is untracked: its figures are the whole process's and say so.

    The frame that contains the `with` is the one whose suspension suspends the block: not the generator behind a
    `@contextmanager` and not `ExitStack`, but the function that uses them.

    Args:
        name: what reports call it.
        kind: `"scope"`, `"call"` or `"task"`.
        frame: the frame that called `__enter__` or `__aenter__`.
        meter: the meter that counts.
        include_children: whether owners below count into its figures.
        budget: what it may use.
        inherited: see `open_owner`.
    """
    if not meter.tracks_owners:
        return open_owner(
            name, kind, meter=meter, include_children=include_children, budget=budget, inherited=inherited
        )

    enclosing = _enclosing_frame(frame)
    flags = enclosing.f_code.co_flags
    is_generator = bool(flags & _GENERATOR) and not flags & _COROUTINE
    tracker = current_tracker()
    needs_steps = tracker is None and not meter.follows_contexts
    needs_frame = is_generator or (bool(flags & _COROUTINE) and needs_steps)
    uses_frame = needs_frame and _frames.is_available()

    # Before the opening, so that the owner is not charged with it.
    may_outlive_caller = not needs_frame and needs_steps and _may_outlive_caller()

    active_before = active_variable.get()
    owner = open_owner(
        name,
        kind,
        meter=meter,
        include_children=include_children,
        budget=budget,
        untracked_reason=UNTRACKED if needs_frame and not uses_frame else "",
        tracker=tracker,
        # Untracked in a generator, it would stay active in its consumer.
        activate=uses_frame or not is_generator,
        inherited=inherited,
    )
    if uses_frame:
        _frames.attach(enclosing, owner, active_before)
    elif may_outlive_caller:
        per_thread.slot.untracked_candidates.append(owner)
    return owner


def _enclosing_frame(frame: FrameType) -> FrameType:
    while frame.f_back is not None and (_is_wrapper_frame(frame) or _is_context_generator(frame)):
        frame = frame.f_back
    return frame


def _is_wrapper_frame(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "")
    return module == "contextlib" or (isinstance(module, str) and module.startswith("memtools."))


def _is_context_generator(frame: FrameType) -> bool:
    if not frame.f_code.co_flags & _GENERATOR or frame.f_back is None:
        return False
    return frame.f_back.f_globals.get("__name__") == "contextlib"


def _may_outlive_caller() -> bool:
    # A plain function may open a scope on behalf of the task that it runs in. If the loop runs while the scope is
    # still open, the task has been suspended unnoticed. One callback is enough for all scopes until then.
    slot = per_thread.slot
    while slot.untracked_candidates and slot.untracked_candidates[-1].ended:
        slot.untracked_candidates.pop()
    loop, call_soon = _running_loop()
    scheduled_on = slot.scheduled_on
    if loop is not None and (scheduled_on is None or scheduled_on() is not loop):
        slot.scheduled_on = weakref.ref(loop)
        call_soon(_mark_untracked)
    return loop is not None


def _mark_untracked() -> None:
    slot = per_thread.slot
    slot.scheduled_on = None
    while slot.untracked_candidates:
        owner = slot.untracked_candidates.pop()
        owner.meter.mark_untracked(owner, UNTRACKED)


def _running_loop() -> Any:
    """Return the loop that runs a task in this thread, and its `call_soon`; (None, None) if none does."""
    # Any: both libraries are only looked up, not imported here.
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


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for meter in existing_meters():
        meter.after_fork(per_thread.slot)


register_after_fork(_after_fork)
configure(
    Owner,
    UsageTuple,
    active_variable,
    _open,
    rss_or_zero,
    _update_largest_children,
    _checkpoint,
    has_listeners,
    _emit_ended,
    "native",
)
set_root_account(_root)
