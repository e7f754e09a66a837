"""What every meter can be asked, and which one to take.

Covers: the protocol, the choice by argument, environment and default. Leaves to others: the meters themselves, one file
each; a further one joins by a line in `_MAKERS`.
"""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Final, Protocol

from memtools.errors import ConfigError
from memtools.ledger._context import Slot
from memtools.ledger._owner import Owner
from memtools.ledger.meters._rss import RssMeter
from memtools.units import parse_choice


class Meter(Protocol):
    """One way of counting bytes. All calls are safe from any thread.

    A meter that does not follow is never asked to `switch`, and its owners never have the turn.
    """

    @property
    def name(self) -> str:
        """How the meter is called in arguments, reports and `MEMTOOLS_METER`."""
        ...

    @property
    def follows(self) -> bool:
        """Whether owners must be followed through the steps of their coroutines."""
        ...

    @property
    def tells_threads_apart(self) -> bool:
        """Whether an owner's figures hold nothing of what other threads do meanwhile."""
        ...

    def hold(self) -> None:
        """Keep the meter running until `release`; calls are counted."""
        ...

    def release(self) -> None:
        """Give up one hold; the last one ends what the first one started."""
        ...

    def enter(self, owner: Owner, slot: Slot, payer: Owner | None, is_task: bool, /) -> None:
        """Begin to measure a new owner; it gets the turn in `slot` unless it is adrift.

        Its figures count into those of `payer`; `is_task` says that it stands beside its payer and not inside it.
        """
        ...

    def leave(self, owner: Owner, slot: Slot, back: Owner | None, /) -> None:
        """End it: write its last figures, and give the turn to `back` if the owner has it."""
        ...

    def switch(self, slot: Slot, owner: Owner | None, /) -> None:
        """Charge `owner` (or nobody) for what this thread allocates from now on."""
        ...

    def set_adrift(self, owner: Owner, why: str, /) -> None:
        """Measure the owner process-wide from now on: nobody follows its steps."""
        ...

    def look(self, owner: Owner, /) -> tuple[int, int]:
        """Return live and peak bytes of an open owner, up to this moment."""
        ...

    def left_alive(self, owner: Owner, /) -> int | None:
        """Return what an owner, ended or not, still holds, or None where that cannot be known."""
        ...

    def join(self, owner: Owner, /) -> None:
        """Count what the owner holds, now and after its end, in its account and in no other, where that is known."""
        ...

    def after_fork(self, slot: Slot, /) -> None:
        """Make locks anew in the child of a fork, where only the thread of `slot` lives on."""
        ...

    @property
    def unattributed_bytes(self) -> int:
        """Bytes added by nobody's turn since the meter was first held."""
        ...


def _make_native() -> Meter:
    from memtools.ledger.meters._native import NativeMeter  # may not have been built

    return NativeMeter()


def _make_traced() -> Meter:
    from memtools.ledger.meters._tracemalloc import (
        TracemallocMeter,
    )  # tracemalloc loads pickle: for those who ask for it

    return TracemallocMeter()


_MAKERS: Final[dict[str, Callable[[], Meter]]] = {
    "native": _make_native,
    "tracemalloc": _make_traced,
    "rss": RssMeter,
}
_made: dict[str, Meter] = {}


def choose_meter(name: str | None = None) -> Meter:
    """Return the meter called `name`, else the one that `MEMTOOLS_METER` names, else the default.

    The default is `native` where it can be had (see `native_reason`), else `rss`. Where the native meter has had
    to stop in the middle of a program it can still be named, by code that has done so all along; its owners then say
    that their figures are not exact.

    Raises:
        ConfigError: for a name that no meter has, and for `native` where it cannot be had.
    """
    origin = "meter"
    if name is None:
        name = os.environ.get("MEMTOOLS_METER")
        origin = "MEMTOOLS_METER"
    reason = native_reason()
    if not name and origin == "MEMTOOLS_METER":
        name = "rss" if reason else "native"
    can_be_asked = not reason or _has_stopped()
    # Checked first: what is no text may be no key either.
    names = tuple(known for known in _MAKERS if known != "native" or can_be_asked)
    if name == "native" and not can_be_asked:
        raise ConfigError(origin, name, f"{' or '.join(map(repr, names))}; there is no 'native' here: {reason}")
    chosen = parse_choice(name, names, name=origin)
    return _made_meter(chosen)


def native_reason() -> str:
    """Return why the native meter cannot be had in this process, empty if it can.

    The first call installs its hooks, which pass through until an owner is opened, and checks that they hold what they
    promise.
    """
    if "native" not in _made and os.environ.get("MEMTOOLS_NATIVE") == "0":
        return "MEMTOOLS_NATIVE=0"
    missing = _why_not_there()
    if missing:
        return missing
    from memtools.ledger import _native

    if not _native.reason():
        _made_meter("native")
    return _native.reason()


@cache
def _why_not_there() -> str:
    # Asked once: an import that fails searches the disk each time, and a child forked meanwhile hangs on its lock.
    try:
        import_module("memtools.ledger._native")
    except ImportError as error:
        return f"it was not built, or cannot be loaded ({error})"
    return ""


def _has_stopped() -> bool:
    if "native" not in _made:
        return False
    from memtools.ledger import _native

    return _native.has_stopped()


def _made_meter(name: str) -> Meter:
    meter = _made.get(name)
    return meter if meter is not None else _made.setdefault(name, _MAKERS[name]())


def made_meters() -> tuple[Meter, ...]:
    """Return the meters that were asked for so far."""
    return tuple(_made.values())
