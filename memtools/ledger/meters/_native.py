"""The meter that counts in the allocator: to the byte, per thread, cheap enough to leave on.

What the figures mean:

- A block is charged to the owner that was current on the thread that allocated it, and credited to that owner, whatever
  frees it, wherever and whenever: another thread, a step of another task, a garbage collection.
- Live bytes are the blocks of an owner and of its children that still live. After the owner's end they go on falling
  for as long as the owner is referenced. A child that outlives it takes its bytes along to the next ancestor.
- Peaks are the highest sums of these at any one moment, all threads together.
- Blocks of up to 16 bytes count as 16, which is what they take; all others count to the byte. Blocks from before
  the meter was first acquired do not count. Memory that Python's allocators do not hand out (a C library's own
  `malloc`, numpy's arrays unless `track_tasks(numpy=True)` counts them, `mmap`) is not seen.

The figures stop being exact where another tool takes the hooks out of the allocator, as `tracemalloc.stop()` does when
tracemalloc was started before the first owner was opened. Owners that are open then say so. Where a sub-interpreter is
made, counting stops for good, and owners say that; what they still hold is not known then.
"""

import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any, Final, cast

from memtools.errors import ConfigError, MissingExtraError
from memtools.ledger import _native
from memtools.ledger._context import per_thread
from memtools.ledger._enforcement import BudgetEnforcer
from memtools.ledger._owner import Owner, ThreadSlot

# Where numpy publishes its C functions: since 2.0, and before.
_NUMPY_MODULES: Final = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")
# Up to 3.12, and since; everything else that makes sub-interpreters in Python goes through these.
_SUBINTERPRETER_MODULES: Final = frozenset({"_xxsubinterpreters", "_interpreters"})

_STOPPED: Final = "the native ledger has stopped counting: {}"
_HOOKS_REMOVED: Final = "another tool removed the hooks from the allocator"
_SHARED: Final = "too many owners at once: charged to the parent, together with all that it holds"
_BLOCKS_LOST: Final = "there was no memory to count every block"


class NativeMeter:
    """Figures from hooks in Python's allocators, which are installed when the meter is made and stay for good.

    While the meter is not acquired, the hooks pass through.

    All calls are safe from any thread. Each call into the counter is a single one under the GIL; the lock only guards
    `acquire` and `release`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a finaliser that runs in between may open a scope of its own
        _native.set_main_thread(threading.main_thread().ident or 0)
        on_subinterpreter_import(_native.listen_for_interpreters)
        _native.install()
        _native.set_native_meter(self)

    @property
    def name(self) -> str:
        """`"native"`."""
        return "native"

    @property
    def tracks_owners(self) -> bool:
        """True: a block is charged to the current owner."""
        return True

    @property
    def is_per_thread(self) -> bool:
        """True: each thread has a current owner of its own."""
        return True

    @property
    def unattributed_bytes(self) -> int:
        """Bytes of the live blocks that were allocated without a current owner."""
        return _native.untracked_bytes()

    @property
    def refused_blocks(self) -> int:
        """How many blocks budgets have refused, of all owners."""
        return _native.refused_blocks()

    def acquire(self) -> None:
        """Begin to count; install the hooks again where another tool removed them.

        No block is refused to this thread from here until `start`, or the next switch: records are being written.
        """
        _native.suspend_enforcement(True)
        with self._lock:
            _native.acquire()
            if not _native.hooks_in_place() and _native.install():
                _native.set_counting(True)

    def release(self) -> None:
        """Undo one `acquire`; after the last one new blocks are no longer counted."""
        with self._lock:
            _native.release()

    def start(self, owner: Owner, slot: ThreadSlot, parent: Owner | None, _is_task: bool, /) -> None:
        """Begin to measure `owner`."""
        if numpy_enabled():
            _native.count_arrays(True)
        counter = owner.meter_state = _native.Counter(_counter(parent) if parent is not None else None)
        owner.baseline = float(_native.lost_blocks())
        owner.previous = slot.owner
        if owner.is_untracked:
            counter.make_process_wide()
            _native.suspend_enforcement(False)
            return
        self.attach_account(owner)
        if counter.is_shared:
            owner.note = _SHARED
        if owner.budget is not None and owner.budget.interrupts:
            _native.set_switch_interval(sys.getswitchinterval())
            counter.set_limit(owner.budget.limit_bytes, owner.budget.on_exceed == "deny", BudgetEnforcer(owner))
        self.switch(slot, owner)

    def stop(self, owner: Owner, slot: ThreadSlot, next_owner: Owner | None, /) -> None:
        """Write the owner's last figures; if it is the current one, make `next_owner` the current one."""
        if not owner.ended:
            owner.live, owner.peak = self.read(owner)
            owner.note = owner.note or _inexact_reason(owner)
            _counter(owner).close()
            owner.detached = True
        if slot.owner is owner:
            self.switch(slot, next_owner)

    def switch(self, slot: ThreadSlot, owner: Owner | None, /) -> None:
        """Charge `owner` for what this thread allocates from now on."""
        slot.owner = owner
        _native.switch(None if owner is None else owner.meter_state)  # type: ignore[arg-type]  # checked in C; a cast costs

    def mark_untracked(self, owner: Owner, why: str, /) -> None:
        """Turn the owner's figures into the whole process's, because its steps are not tracked any more.

        What it was charged with until now stays with its parent; what comes now is not charged to its parent either.
        """
        with self._lock:
            if owner.is_untracked or owner.ended:
                return
            _counter(owner).make_process_wide()
            owner.is_untracked = owner.detached = True
            owner.note = why
            above = owner.parent
            owner.charged_to = above.charged_to if above is not None and not above.ended else None
            slot = per_thread.slot
            if slot.owner is owner:
                self.switch(slot, owner.previous)

    def read(self, owner: Owner, /) -> tuple[int, int]:
        """Return live and peak bytes up to now."""
        if owner.meter_state is None:
            return 0, 0  # another thread has not finished opening it
        live, peak, allocated = _counter(owner).read()
        owner.allocated = None if owner.is_untracked else allocated
        if _native.has_stopped() and not owner.ended:
            owner.note = owner.note or _inexact_reason(owner)
        return live, peak

    def live_bytes(self, owner: Owner, /) -> int | None:
        """Return the bytes of the blocks of an owner and its children that still live."""
        if owner.is_untracked or owner.meter_state is None or _native.has_stopped():
            return None  # or another thread has not finished opening it
        return _counter(owner).read()[0]

    def attach_account(self, owner: Owner, /) -> None:
        """Count what the owner holds, now and after its end, in its account and in no other."""
        if owner.meter_state is None:
            return  # another thread has not finished opening it
        account = owner.account
        if account.totals is None:
            account.totals = _native.AccountTotals()
        account.excludes_children = not owner.include_children
        _counter(owner).attach_account(account.totals)  # type: ignore[arg-type]  # checked in C; a cast costs

    def after_fork(self, _slot: ThreadSlot, /) -> None:
        """Renew the lock: a thread that is gone may have held it."""
        self._lock = threading.RLock()
        _native.after_fork(threading.get_ident())


def _counter(owner: Owner) -> _native.Counter:
    return cast("_native.Counter", owner.meter_state)


def _inexact_reason(owner: Owner) -> str:
    if _native.has_stopped():
        return _STOPPED.format(_native.reason())
    if _counter(owner).is_lost or not _native.hooks_in_place():
        return _HOOKS_REMOVED
    return _BLOCKS_LOST if _native.lost_blocks() != owner.baseline else ""


_numpy_users = 0  # how many `TaskTracking` objects want arrays to be counted


def enable_numpy() -> None:
    """Count the memory of numpy's arrays from now on, by numpy's own kind of handler (NEP 49).

    numpy keeps the handler in a context variable, so it is set here, and from then on wherever an owner is opened: in
    tasks that are older, and in other threads. It is only removed from the context that calls `disable_numpy`;
    elsewhere it stays, and passes through while nothing is counted. Arrays from before are not counted, and are freed
    by the handler that made them.

    Raises:
        MissingExtraError: without numpy.
        ConfigError: where numpy is older than 1.22 or its C functions are not found.
    """
    global _numpy_users
    try:
        _native.load_numpy_api(_find_numpy_api())
        _native.count_arrays(True)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ConfigError("numpy", True, f"it with numpy 1.22 or later; here {error}") from error
    _numpy_users += 1
    _native.disable_fast_path(True)  # each opening sets the handler


def disable_numpy() -> None:
    """Count arrays no more, in this context and where the handler was not set yet; counted ones are credited later."""
    global _numpy_users
    _numpy_users -= 1
    if not _numpy_users:
        _native.disable_fast_path(False)
        _native.count_arrays(False)


def numpy_enabled() -> bool:
    """Return whether arrays are to be counted."""
    return _numpy_users > 0


def _find_numpy_api() -> object:
    try:
        importlib.import_module("numpy")
    except ImportError as error:
        raise MissingExtraError("numpy", "numpy") from error
    for name in _NUMPY_MODULES:
        try:
            module: Any = importlib.import_module(name)  # Any: numpy is optional, and its types are not loaded
        except ImportError:
            continue
        return module._ARRAY_API
    raise AttributeError("its table of functions is not where it used to be")


def on_subinterpreter_import(prepare: Callable[[], object]) -> None:
    """Call `prepare` before Python code can make its first sub-interpreter; at once, where it could have."""
    if _SUBINTERPRETER_MODULES & sys.modules.keys():
        prepare()
    else:
        sys.meta_path.insert(0, _SubinterpreterFinder(prepare))


class _SubinterpreterFinder(MetaPathFinder):
    """Finds nothing; calls back when one of the modules is imported."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /) -> None:
        """Leave the search to the other finders."""
        if fullname in _SUBINTERPRETER_MODULES:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self._prepare()
