"""Open an owner where a `with` stands, and have it followed by whoever can.

Four answers to "who takes the turn back when the code inside the `with` is suspended?":

- nobody has to: a plain function runs to its end;
- the driver of the task (`_driver`), where there is one;
- the interpreter's events for the frame that holds the `with` (`_frames`, Python 3.12 and later);
- nobody can: the owner is adrift, its figures are the whole process's and say so.

What holds the `with` is the frame whose suspension suspends the block: not the generator behind a `@contextmanager` and
not `ExitStack`, but the function that uses them.
"""

import sys
import weakref
from types import FrameType
from typing import Any, Final

from memtools.ledger import _frames
from memtools.ledger._book import open_owner
from memtools.ledger._budget import Budget
from memtools.ledger._current import active, current_driver, current_task, per_thread
from memtools.ledger._meters import Meter
from memtools.ledger._owner import Kind, Owner

NOBODY_FOLLOWS: Final = "process-wide: nobody follows this task's steps (see memtools.install)"
# inspect.CO_GENERATOR | CO_ASYNC_GENERATOR, and CO_COROUTINE | CO_ITERABLE_COROUTINE: the language's own numbers;
# importing inspect for them would cost more than all of memtools.
_GENERATOR: Final = 0x20 | 0x200
_COROUTINE: Final = 0x80 | 0x100


def open_in_frame(
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
    driver = current_driver()
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
