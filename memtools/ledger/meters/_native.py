"""The meter that counts in the allocator: to the byte, per thread, cheap enough to leave on.

What the figures mean:

- A block is charged to the owner that is active in the context in which it was allocated, and credited to that owner,
  whatever frees it, wherever and whenever: another thread, a step of another task, a garbage collection.
- A figure is exact if it has all that ran in contexts that descend from the owner's. Threads without a context of its
  own are not among these; where such a thread may have worked for the owner, the owner says so.
- Live bytes are the blocks of an owner and of its children that still live. After the owner's end they go on falling
  for as long as the owner is referenced. A child that outlives it takes its bytes along to the next ancestor.
- Peaks are the highest sums of these at any one moment, all threads together.
- Blocks of up to 16 bytes count as 16, which is what they take; all others count to the byte. Blocks from before
  the meter was first acquired do not count. numpy's arrays count from the moment at which both numpy and the meter are
  there. Other memory that Python's allocators do not hand out (a C library's own `malloc`, `mmap`) is not seen.

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
from typing import Final, cast

from memtools.errors import ConfigError, MissingExtraError
from memtools.ledger import _native
from memtools.ledger._enforcement import BudgetEnforcer, ignored_stops
from memtools.ledger._owner import Account, Owner, ThreadSlot
from memtools.units import format_size

# Where numpy publishes its C functions: since 2.0, and before.
_NUMPY_MODULES: Final = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")
# What makes sub-interpreters in Python goes through one of these: up to 3.12, up to 3.13, and since. From 3.14 on
# `_interpreters` says nothing, because asyncio and `concurrent.futures` import it in every program.
_SUBINTERPRETER_MODULES: Final = frozenset(
    {"concurrent.interpreters", "concurrent.futures.interpreter"}
    if sys.version_info >= (3, 14)
    else {"_xxsubinterpreters", "_interpreters"}
)

_STOPPED: Final = "the native ledger has stopped counting: {}"
_HOOKS_REMOVED: Final = "another tool removed the hooks from the allocator"
_SHARED: Final = "too many owners at once: charged to the parent, together with all that it holds"
_ARRAYS_UNSEEN: Final = "numpy's arrays are not counted ({})"
_BLOCKS_LOST: Final = "there was no memory to count every block"
_UNCARRIED: Final = "{} allocated {} outside of its context meanwhile, which it may lack (see memtools.bind_to_current)"
# A thread that takes what any caller has submitted runs a function of one of these.
_POOL_MODULES: Final = frozenset(
    {
        "concurrent.futures.thread",
        "multiprocessing.pool",
        "gevent.threadpool",
        "eventlet.tpool",
        "twisted._threads._threadworker",
    }
)


class NativeMeter:
    """Figures from hooks in Python's allocators, which are installed when the meter is made and stay for good.

    While the meter is not acquired, the hooks pass through.

    All calls are safe from any thread. Each call into the counter is a single one under the GIL; the lock only guards
    `acquire` and `release`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a finaliser that runs in between may open a scope of its own
        on_subinterpreter_import(_native.listen_for_interpreters)
        _native.set_threads_inherit(bool(getattr(sys.flags, "thread_inherit_context", False)))  # 3.14
        _native.install()
        wrap_numpy_default_or_wait()  # after it: its functions look blocks up in the map that the hooks have made
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
    def follows_contexts(self) -> bool:
        """True: each context has an active owner, which its allocations are charged to."""
        return True

    @property
    def is_per_thread(self) -> bool:
        """True: what another thread does in another context is not charged."""
        return True

    @property
    def unattributed_bytes(self) -> int:
        """Bytes of the live blocks that were allocated without a current owner."""
        return _native.untracked_bytes()

    @property
    def refused_blocks(self) -> int:
        """How many blocks budgets have refused, of all owners."""
        return _native.refused_blocks()

    @property
    def ignored_stops(self) -> int:
        """How many owners caught every exception that was to stop them."""
        return ignored_stops()

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
        if not _numpy.is_settled and "numpy" in sys.modules:
            _numpy.settle()
        if numpy_enabled():
            _native.count_arrays(True)
        counter = owner.meter_state = _native.Counter(_counter(parent) if parent is not None else None)
        owner.baseline = float(_native.lost_blocks())
        if owner.is_untracked:
            counter.make_process_wide()
            _native.suspend_enforcement(False)
            return
        self.attach_account(owner)
        if counter.is_shared:
            owner.note = _SHARED
        budget = owner.budget
        if budget is not None and budget.interrupts and not (counter.is_shared and budget.inexact == "warn"):
            counter.set_limit(budget.limit_bytes, budget.on_exceed == "deny", BudgetEnforcer(owner))
        self.switch(slot, owner)

    def stop(self, owner: Owner, _slot: ThreadSlot, _next_owner: Owner | None, /) -> None:
        """Write the owner's last figures; from now on the active owner of the context is charged."""
        if not owner.ended:
            owner.live, owner.peak = self.read(owner)
            owner.note = owner.note or _inexact_reason(owner)
            _counter(owner).close()
            owner.detached = True

    def switch(self, _slot: ThreadSlot, owner: Owner | None, /) -> None:
        """Charge `owner`, or else the active one, from now on until another context becomes current."""
        if owner is None:
            _native.switch_to_context()
        else:
            _native.switch(owner.meter_state)  # type: ignore[arg-type]  # checked in C; a cast costs

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
            _native.switch_to_context()

    def read(self, owner: Owner, /) -> tuple[int, int]:
        """Return live and peak bytes up to now."""
        if owner.meter_state is None:
            return 0, 0  # another thread has not finished opening it
        live, peak, allocated = _counter(owner).read()
        owner.allocated = None if owner.is_untracked else allocated
        if _native.has_stopped() and not owner.ended:
            owner.note = owner.note or _inexact_reason(owner)
        return live, peak

    def charge_unowned(self, owner: Owner, /) -> None:
        """Charge the owner, too, with what this thread allocates in contexts that no owner is active in."""
        _counter(owner).charge_unowned()

    def overcount_reason(self, owner: Owner, /) -> str:
        """Return the owner's note, if it is process-wide or shares the counter of its parent."""
        return owner.note if owner.is_untracked or _counter(owner).is_shared else ""

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
            if _on_account is not None:
                _on_account(account)
        account.excludes_children = not owner.include_children
        _counter(owner).attach_account(account.totals)  # type: ignore[arg-type]  # checked in C; a cast costs

    def after_fork(self, _slot: ThreadSlot, /) -> None:
        """Renew the lock: a thread that is gone may have held it."""
        self._lock = threading.RLock()
        _native.after_fork()


_on_account: Callable[[Account], object] | None = None


def set_account_listener(listener: Callable[[Account], object] | None) -> None:
    """Call back with each account that gets a number from now on, before an owner is counted in it; None for no more.

    The listener is called while an owner is opened: it must neither wait nor raise.
    """
    global _on_account
    _on_account = listener


def account_number(account: Account) -> int:
    """Return the number under which the C code knows an account; 0 where it has none."""
    totals = account.totals
    return totals.number() if isinstance(totals, _native.AccountTotals) else 0


def _counter(owner: Owner) -> _native.Counter:
    return cast("_native.Counter", owner.meter_state)


def _inexact_reason(owner: Owner) -> str:
    if _native.has_stopped():
        return _STOPPED.format(_native.reason())
    if _counter(owner).is_lost or not _native.hooks_in_place():
        return _HOOKS_REMOVED
    return _BLOCKS_LOST if _native.lost_blocks() != owner.baseline else _numpy.doubt or _uncarried_reason(owner)


def _uncarried_reason(owner: Owner) -> str:
    """Return which threads may have worked for the owner outside of its context; empty where none has."""
    if _counter(owner).others_may_have_worked() is None:
        return ""
    _native.classify_threads(_POOL_MODULES)
    others = _counter(owner).others_may_have_worked()
    if others is None:
        return ""
    begun, pooled = others
    return _UNCARRIED.format(
        "threads that were started in it" if begun else "threads of a pool", format_size(begun or pooled)
    )


class _NumpyDefault:
    """Whether numpy's default memory handler is counted.

    Attributes:
        is_settled: whether that is known: numpy is loaded.
        doubt: why its arrays are not counted; empty where they are, or where numpy is not loaded.
    """

    __slots__ = ("doubt", "is_settled")

    def __init__(self) -> None:
        self.is_settled = False
        self.doubt = ""

    def settle(self) -> None:
        """Count the arrays from now on, if numpy's C functions are loaded."""
        api = _loaded_numpy_api()
        if api is not None:
            self.is_settled = True
            try:
                _native.wrap_numpy_default(api)
            except (RuntimeError, ValueError) as error:
                self._give_up(str(error))
        elif _has_ndarray(sys.modules.get("numpy")):
            self.is_settled = True
            self._give_up("its table of functions is not where it used to be")

    def _give_up(self, why: str) -> None:
        self.doubt = _ARRAYS_UNSEEN.format(why)
        _native.disable_fast_path(True)  # which does not ask for the doubt


_numpy = _NumpyDefault()


def wrap_numpy_default_or_wait() -> None:
    """Count the arrays of numpy's default memory handler: now, or when the program has loaded numpy."""
    if "numpy" in sys.modules:
        _numpy.settle()
    if not _numpy.is_settled:
        sys.meta_path.insert(0, _NumpyFinder())


class _NumpyFinder(MetaPathFinder):
    """Finds nothing; counts numpy's arrays as soon as its C functions are loaded.

    numpy loads more modules after them, and looks for the next one here.
    """

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /) -> None:
        """Leave the search to the other finders."""
        if not fullname.startswith("numpy.") or "numpy" not in sys.modules:
            return
        if not _numpy.is_settled:
            _numpy.settle()
        if _numpy.is_settled and self in sys.meta_path:
            sys.meta_path.remove(self)


_numpy_users = 0  # how many `TaskTracking` objects want arrays to be counted


def enable_numpy() -> None:
    """Count the memory of numpy's arrays from now on over any handler, by numpy's own kind of handler (NEP 49).

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
        _native.disable_fast_path(_numpy.doubt != "")
        _native.count_arrays(False)


def numpy_enabled() -> bool:
    """Return whether arrays are to be counted."""
    return _numpy_users > 0


def _find_numpy_api() -> object:
    try:
        importlib.import_module("numpy")
    except ImportError as error:
        raise MissingExtraError("numpy", "numpy") from error
    api = _loaded_numpy_api()
    if api is None:
        raise AttributeError("its table of functions is not where it used to be")
    return api


def _has_ndarray(numpy: object) -> bool:
    # Whether it is loaded, without loading it where a program does so on demand; and not a stand-in of a test.
    names: dict[str, object] = {}
    if isinstance(numpy, ModuleType):
        names = ModuleType.__getattribute__(numpy, "__dict__")
    return isinstance(names.get("ndarray"), type)


def _loaded_numpy_api() -> object | None:
    modules = (sys.modules.get(name) for name in _NUMPY_MODULES)
    apis = (getattr(module, "_ARRAY_API", None) for module in modules)
    return next((api for api in apis if api is not None), None)


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
