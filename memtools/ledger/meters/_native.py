"""Count bytes in the allocator itself: to the byte, told apart by thread, cheap enough to leave on.

Covers: one tally per owner, whose turn it is on this thread, what becomes of a tally after the owner's end. Leaves to
others: the counting and the sums over the tree of owners (`native/*.c`; `_tally` is not used), when the turn changes
(`_book`, `_driver`, `_frames`).

What the figures mean here:

- A block is charged to the owner that had the turn on the thread that made it, and credited to that owner, whoever
  frees it, wherever and whenever: another thread, a bystander's step, a collection.
- Live bytes are the blocks of an owner and of those below it that still live. After the owner's end they go on falling
  for as long as somebody holds the owner. An owner below that outlives it takes its bytes along to the next one above.
- Peaks are the highest sums of these at any one moment, all threads together.
- Blocks of up to 16 bytes count as 16, which is what they take; all others count to the byte. Blocks from before
  anybody held the meter do not count. Memory that Python's allocators do not hand out (a C library's own `malloc`,
  numpy's arrays unless `track_tasks(numpy=True)` asks for them, `mmap`) is not seen.

The figures stop being exact where another tool takes the hooks out of the allocator, as `tracemalloc.stop()` does when
tracemalloc was started before the first owner was opened. Owners that are open then say so. Where a sub-interpreter is
made, the ledger stops counting for good, and owners say that; what they still hold is not known then.
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
from memtools.ledger._context import Slot, per_thread
from memtools.ledger._enforcement import Stopper
from memtools.ledger._owner import Owner

# Count what numpy's arrays hold, for whoever asks for it: numpy has an allocator of its own.
#
# Covers: meeting numpy, and in which contexts its arrays are counted. Leaves to others: the handler itself (NEP 49,
# `native/arrays.c`), asking for it (`_installing`).
#
# numpy keeps the handler in a context variable, so it is set where it is asked for, and from then on wherever an owner is
# opened: in tasks that are older, and in other threads. It is only taken out of the context that took it out; elsewhere
# it stays, and passes through while nobody counts. Arrays from before are not counted, and freed by whoever made them.

# Where numpy publishes its C functions: since 2.0, and before.
_MODULES: Final = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")


class _Askers:
    """How many installations want arrays to be counted."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


_askers = _Askers()


def begin_to_count() -> None:
    """Count arrays from now on.

    Raises:
        MissingExtraError: without numpy.
        ConfigError: where numpy is older than 1.22 or cannot be talked to.
    """
    from memtools.ledger import _native  # the caller has made sure that it is there

    try:
        _native.meet_numpy(_find_functions())
        _native.follow_arrays(True)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ConfigError("numpy", True, f"it with numpy 1.22 or later; here {error}") from error
    _askers.count += 1
    _native.go_long(True)  # each opening sets the handler


def end_to_count() -> None:
    """Count arrays no more, in this context and wherever it was not set yet; what is counted is credited when freed."""
    from memtools.ledger import _native

    _askers.count -= 1
    if not _askers.count:
        _native.go_long(False)
        _native.follow_arrays(False)


def are_counted() -> bool:
    """Return whether arrays are to be counted."""
    return _askers.count > 0


def _find_functions() -> object:
    try:
        importlib.import_module("numpy")
    except ImportError as error:
        raise MissingExtraError("numpy", "numpy") from error
    for name in _MODULES:
        try:
            module: Any = importlib.import_module(name)  # Any: numpy is met at run time only
        except ImportError:
            continue
        return module._ARRAY_API
    raise AttributeError("its table of functions is not where it used to be")


# Notice that a program is about to make sub-interpreters, which the native ledger has to know before it does.
#
# Covers: the modules by which Python code makes them, loaded already or later. Leaves to others: being told of each one,
# those that C code makes, and what follows (`native/interpreters.c`).

# Up to 3.12, and since; everything else that makes them in Python goes through these.
_MAKERS: Final = frozenset({"_xxsubinterpreters", "_interpreters"})


def before_they_are_made(prepare: Callable[[], object]) -> None:
    """Call `prepare` before Python code can make its first sub-interpreter; at once, where it could have."""
    if _MAKERS & sys.modules.keys():
        prepare()
    else:
        sys.meta_path.insert(0, _Finder(prepare))


class _Finder(MetaPathFinder):
    """Finds nothing; tells when one of the modules is looked for."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /) -> None:
        """Leave it to the others."""
        if fullname in _MAKERS:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self._prepare()


_STOPPED: Final = "the native ledger has stopped counting: {}"
_TAKEN_OUT: Final = "another tool took the hooks out of the allocator meanwhile"
_SHARED: Final = "too many owners at once: charged to the one above, together with all that is there"
_BLOCKS_LOST: Final = "there was no memory to count every block"


class NativeMeter:
    """Figures from hooks in Python's allocators, which are installed when the meter is made and stay for good.

    While nobody holds the meter the hooks pass through.

    Threads: all calls are safe. Each call into the counter is a single one under the GIL; a lock of our own only guards
    the holds.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a finaliser that runs in the middle may open a scope of its own
        _native.set_main_thread(threading.main_thread().ident or 0)
        before_they_are_made(_native.listen)
        _native.install()
        _native.keep_meter(self)

    @property
    def name(self) -> str:
        """`"native"`."""
        return "native"

    @property
    def follows(self) -> bool:
        """True: a block belongs to whoever has the turn."""
        return True

    @property
    def tells_threads_apart(self) -> bool:
        """True: each thread has a turn of its own."""
        return True

    @property
    def unattributed_bytes(self) -> int:
        """Bytes of the live blocks that were made while nobody had the turn."""
        return _native.nobodys_bytes()

    @property
    def refused_blocks(self) -> int:
        """How many blocks budgets have refused, of anybody's."""
        return _native.refused_blocks()

    def hold(self) -> None:
        """Begin to count; put the hooks back in place where another tool took them out.

        Nothing is refused to this thread from here until `enter`, or the next switch: the book is being written.
        """
        _native.spare(True)
        with self._lock:
            _native.hold()
            if not _native.are_in_place() and _native.install():
                _native.count(True)

    def release(self) -> None:
        """Give up one hold; after the last one new blocks are no longer counted."""
        with self._lock:
            _native.release()

    def enter(self, owner: Owner, slot: Slot, payer: Owner | None, _is_task: bool, /) -> None:
        """Begin to measure `owner`."""
        if are_counted():
            _native.follow_arrays(True)
        tally = owner.watch = _native.Tally(_tally(payer) if payer is not None else None)
        owner.base = float(_native.lost_blocks())
        owner.outer = slot.owner
        if owner.adrift:
            tally.widen()
            _native.spare(False)
            return
        self.join(owner)
        if tally.is_shared:
            owner.note = _SHARED
        if owner.budget is not None and owner.budget.stops:
            _native.set_switch_interval(sys.getswitchinterval())
            tally.limit(owner.budget.limit_bytes, owner.budget.on_exceed == "deny", Stopper(owner))
        self.switch(slot, owner)

    def leave(self, owner: Owner, slot: Slot, back: Owner | None, /) -> None:
        """Write the owner's last figures and give the turn back, if it has it."""
        if not owner.ended:
            owner.live, owner.peak = self.look(owner)
            owner.note = owner.note or _doubt(owner)
            _tally(owner).close()
            owner.detached = True
        if slot.owner is owner:
            self.switch(slot, back)

    def switch(self, slot: Slot, owner: Owner | None, /) -> None:
        """Charge `owner` for what this thread makes from now on."""
        slot.owner = owner
        _native.switch(None if owner is None else owner.watch)  # type: ignore[arg-type]  # checked in C; a cast costs

    def set_adrift(self, owner: Owner, why: str, /) -> None:
        """Turn the owner's figures into the whole process's: nobody follows its steps any more.

        What it was charged with until now stays with its payer; what comes now is not its payer's own either.
        """
        with self._lock:
            if owner.adrift or owner.ended:
                return
            _tally(owner).widen()
            owner.adrift = owner.detached = True
            owner.note = why
            above = owner.parent
            owner.charged = above.charged if above is not None and not above.ended else None
            slot = per_thread.slot
            if slot.owner is owner:
                self.switch(slot, owner.outer)

    def look(self, owner: Owner, /) -> tuple[int, int]:
        """Return live and peak bytes up to now."""
        if owner.watch is None:
            return 0, 0  # another thread is just about to open it
        live, peak, allocated = _tally(owner).figures()
        owner.allocated = None if owner.adrift else allocated
        if _native.has_stopped() and not owner.ended:
            owner.note = owner.note or _doubt(owner)
        return live, peak

    def left_alive(self, owner: Owner, /) -> int | None:
        """Return the bytes of an owner's blocks, and of those below it, that still live."""
        if owner.adrift or owner.watch is None or _native.has_stopped():
            return None  # or another thread is just about to open it
        return _tally(owner).figures()[0]

    def join(self, owner: Owner, /) -> None:
        """Count what the owner holds, now and after its end, in its account and in no other."""
        if owner.watch is None:
            return  # another thread is just about to open it
        account = owner.account
        if account.holdings is None:
            account.holdings = _native.Account()
        account.stands_alone = not owner.include_children
        _tally(owner).join(account.holdings)  # type: ignore[arg-type]  # checked in C; a cast costs

    def after_fork(self, _slot: Slot, /) -> None:
        """Make the lock anew: it may have been held by a thread that is no more."""
        self._lock = threading.RLock()
        _native.after_fork(threading.get_ident())


def _tally(owner: Owner) -> _native.Tally:
    return cast("_native.Tally", owner.watch)


def _doubt(owner: Owner) -> str:
    if _native.has_stopped():
        return _STOPPED.format(_native.reason())
    if _tally(owner).is_lost or not _native.are_in_place():
        return _TAKEN_OUT
    return _BLOCKS_LOST if _native.lost_blocks() != owner.base else ""
