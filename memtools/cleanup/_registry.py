"""The registry of shrinkable objects, and the protocols of steps.

Threads: every function is safe from any thread, in finalisers and after a fork. There is no lock: each operation on the
set of references is one C call. A finaliser may run between any two lines, so a lock here could deadlock with itself.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeAlias, runtime_checkable
from weakref import WeakValueDictionary, getweakrefs, ref

from memtools._safe_calls import CircuitBreaker
from memtools.errors import ConfigError
from memtools.readings import Level

_PER_CLOCK_CHECK: Final = 1000  # registrations that are sorted between two checks of the clock: half a millisecond


class Shrinkable(Protocol):
    """An object that can give memory back when it runs short.

    It may also have an attribute `is_shrinking`: True after a `shrink` that had to stop at its deadline, so that it is
    called again in the next slice. Without this attribute, an object that freed something and returned at its deadline
    is called again.
    """

    def shrink(self, level: Level, deadline: float, /) -> int:
        """Give memory back.

        Args:
            level: how short memory is; more may be given up at `CRITICAL` than at `WARNING`.
            deadline: when to return, finished or not, in seconds of `time.monotonic()`.

        Returns:
            The freed bytes, as far as they are known.
        """
        ...


class Recyclable(Protocol):
    """An object that can end what it has and start afresh: a pool of processes."""

    def recycle(self) -> object:
        """Begin to; called once, when memory is critical after all clean-up steps."""
        ...


class Step(Protocol):
    """A clean-up step: gives memory back when it is called."""

    @property
    def name(self) -> str:
        """The name in events, logs and statistics."""
        ...

    @property
    def min_level(self) -> Level:
        """The lowest level at which the step runs."""
        ...

    def __call__(self, level: Level, deadline: float, /) -> int:
        """Give memory back.

        Args:
            level: how short memory is.
            deadline: when to return, finished or not, in seconds of `time.monotonic()`.

        Returns:
            The bytes that are known to have been freed.
        """
        ...


@runtime_checkable
class SlicedStep(Step, Protocol):
    """A step that can pause: the reclaimer iterates over its slices instead of calling it."""

    def slices(self, level: Level, left: Callable[[], float], /) -> Iterator[int]:
        """Give memory back in slices of a few milliseconds each.

        Args:
            level: how short memory is.
            left: returns the seconds that may still be spent; to be called before each slice. The time that passes
                between two slices does not count.

        Yields:
            The bytes that each slice is known to have freed. A step that yields nothing had nothing to do, and does not
            count as run.
        """
        ...


class History:
    """What is known from earlier calls of the `shrink` of one object.

    Attributes:
        breaker: skips the object after five failures in a row.
        freed_bytes: the bytes that its last `shrink` freed.
        size_bytes: its shallow size after its last `shrink`.
        failures: how often its `shrink` raised.
        overruns: how often its `shrink` returned late.
    """

    __slots__ = ("breaker", "failures", "freed_bytes", "overruns", "size_bytes")

    def __init__(self) -> None:
        self.breaker = CircuitBreaker()
        self.freed_bytes = 0
        self.size_bytes = 0
        self.failures = 0
        self.overruns = 0


class Registration(ref[Shrinkable]):
    """The weak reference to one registered object; hashed by identity, since the object may be unhashable.

    Attributes:
        history: what is known from earlier calls; None if its `shrink` was never called. It lives as long as the
            registration.
    """

    __slots__ = ("history",)
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    history: History | None

    def is_registered(self) -> bool:
        """Return whether this is still in the registry; the object may be dead already."""
        return self in _registrations


_registrations: set[Registration] = set()

# A weak reference's callback runs in the code that drops the last strong reference. A C method takes no lock there and
# runs no Python code, and `discard` accepts a registration that has been removed already.
_discard: Callable[[Registration], None] = _registrations.discard


def register(shrinkable: Shrinkable) -> None:
    """Have the `shrink` of an object called when memory runs short, for as long as the object lives.

    The registry holds it weakly and by identity. A second call does nothing.

    Raises:
        ConfigError: if the object has no method `shrink`, or cannot be weakly referenced.
    """
    if not callable(getattr(shrinkable, "shrink", None)):
        raise ConfigError("shrinkable", shrinkable, "an object with a method shrink(level, deadline) -> freed bytes")
    if _registrations_of(shrinkable):
        return

    try:
        registration = Registration(shrinkable, _discard)
    except TypeError:
        accepted = "an object that can be weakly referenced (a class with slots needs `__weakref__` among them)"
        raise ConfigError("shrinkable", shrinkable, accepted) from None
    registration.history = None
    _registrations.add(registration)


def unregister(shrinkable: Shrinkable) -> None:
    """Remove an object from the registry; do nothing if it is not registered."""
    for registration in _registrations_of(shrinkable):
        _registrations.discard(registration)


_Recyclables: TypeAlias = "WeakValueDictionary[int, Recyclable]"

# By id, since an object may have an equality of its own.
_recyclables: Final[_Recyclables] = WeakValueDictionary()


def register_recyclable(target: Recyclable) -> None:
    """Have any monitor call `target.recycle()` when its clean-up steps were not enough; `target` is held weakly."""
    _recyclables[id(target)] = target


def unregister_recyclable(target: object) -> None:
    """Undo it; do nothing if it is not registered."""
    if _recyclables.get(id(target)) is target:
        _recyclables.pop(id(target), None)


def recyclables() -> list[Recyclable]:
    """Return the registered objects that are alive now."""
    # `valuerefs` is one C call: an object that is collected meanwhile does not disturb the iteration.
    return [target for reference in _recyclables.valuerefs() if (target := reference()) is not None]


def registered() -> tuple[Shrinkable, ...]:
    """Return the registered objects that are alive now, each once, in no order.

    The snapshot keeps its objects alive, so do not hold on to it.
    """
    # `set.copy` is one C call. Iterating over the set itself would fail if an object died meanwhile.
    alive = [shrinkable for registration in _registrations.copy() if (shrinkable := registration()) is not None]
    # Two threads that register one object at the same moment may make two registrations.
    return tuple({id(shrinkable): shrinkable for shrinkable in alive}.values())


def registrations() -> list[Registration]:
    """Return the registrations as they are now, including objects that are about to die."""
    return list(_registrations.copy())


def largest_first() -> Iterator[Registration | None]:
    """Yield the registrations, the largest objects first (to a factor of two), those that freed nothing last.

    Yields None now and then, so that the caller can check the clock. An exact order would take longer than a slice may:
    sorting 100,000 registrations alone does. The size is an estimate: the shallow size, which an object may extend by
    its own `__sizeof__`, or the bytes that it freed last time, whichever is more.
    """
    by_magnitude: dict[int, list[Registration]] = {}
    for count, registration in enumerate(registrations(), 1):
        by_magnitude.setdefault(_magnitude(registration), []).append(registration)
        if count % _PER_CLOCK_CHECK == 0:
            yield None

    for magnitude in sorted(by_magnitude, reverse=True):
        yield from by_magnitude[magnitude]


def size_of(shrinkable: object) -> int:
    """Return the shallow size in bytes; 0 if the object's `__sizeof__` raises."""
    try:
        return sys.getsizeof(shrinkable)
    except Exception:
        return 0


def checked_bytes(answer: object) -> int:
    """Return the freed bytes that a step or an object reported; 0 if it did not return a number of bytes."""
    return max(answer, 0) if isinstance(answer, int) else 0


def _registrations_of(shrinkable: object) -> list[Registration]:
    # The object knows its weak references. A table of ids would be wrong: an id is reused after death.
    references = getweakrefs(shrinkable)
    return [reference for reference in references if type(reference) is Registration and reference in _registrations]


def _magnitude(registration: Registration) -> int:
    shrinkable = registration()
    if shrinkable is None:
        return 0
    return _expected_bytes(size_of(shrinkable), registration.history).bit_length()


def _expected_bytes(size_bytes: int, history: History | None) -> int:
    if history is None:
        return size_bytes
    # An object that freed nothing may have grown since.
    if not history.freed_bytes and size_bytes < 2 * history.size_bytes:
        return 0
    return max(size_bytes, history.freed_bytes)
