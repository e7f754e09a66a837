"""`BoundedList`: a list with a maximum number of items, or of bytes."""

import sys
from collections.abc import Iterable
from copy import deepcopy
from time import monotonic, thread_time
from typing import Any, Final, Self, TypeVar

from memtools._records import record
from memtools._suggestions import suggest_arguments
from memtools.cleanup import register, unregister
from memtools.readings import Level
from memtools.structures._byte_bounded import ByteBoundedMixin
from memtools.structures._derived_class import derived_class, public_class_of
from memtools.structures._subclass_state import added_state, restore_state
from memtools.structures._window import (
    DEFAULT_MAXLEN,
    OWN_SLOTS,
    SHRINK_ABOVE,
    BatchSizer,
    BoundedListBase,
    ListBounds,
    OnEvict,
    Sizeof,
    Unset,
    parse_bounds,
)

T = TypeVar("T")

_NO_ARGUMENTS: Final = (None, None, sys.getsizeof, True)  # keep, on_evict, sizeof and shrinkable, where none is given

# Items of a batch whose size is taken at most: `sys.getsizeof` takes longer than to release an item.
_MAX_SAMPLE: Final = 1000


@record
class BoundedListStatistics:
    """How full a bounded list is, and what it evicted.

    Attributes:
        length: the number of items.
        maxlen: the maximum number of items, or None.
        keep: how many items an overflow leaves; None where `maxlen` is None.
        size_bytes: the remembered shallow size of the items in bytes; None without `max_bytes`.
        max_bytes: the maximum of bytes of all items, or None.
        evicted: how many items were evicted since the list was made.
        hook_failures: calls of `on_evict` that raised.
    """

    length: int
    maxlen: int | None
    keep: int | None
    size_bytes: int | None
    max_bytes: int | None
    evicted: int
    hook_failures: int


class BoundedList(BoundedListBase[T]):
    """A `list` that keeps the newest items: after every call `len(x) <= maxlen`, and the oldest items are evicted.

    In everything else it is a list, at the speed of a list: `isinstance`, indexing, slices, iteration, comparison,
    `sort`, JSON. Slices and `x + y` are plain lists; `copy`, `copy.copy`, `deepcopy` and pickles are bounded lists with
    the same bounds (a pickle leaves out `on_evict`, which belongs to its process). Code that rebuilds containers as
    `type(x)(items)`, such as `dataclasses.asdict`, gets a bounded list of all these items.

    Example:
        >>> recent = BoundedList([1, 2, 3], maxlen=3)
        >>> recent.append(4)
        >>> recent
        [2, 3, 4]

    Threads: as a list. The bound holds after the last of several concurrent calls has returned; with `max_bytes`, use a
    lock.

    Cost: `append` is a C method where it could be built, and reading is that of `list`. An `append` to a full list with
    the default `keep` moves the whole list.

    Args:
        iterable: the first items.
        maxlen: the maximum number of items; None, for no limit, only if `max_bytes` is given. Where no bound is named,
            it is the number of first items, and at least 1,000; a bounded list as `iterable` hands its bounds on.
        keep: how many items an overflow leaves. By default `maxlen`: exactly the last `maxlen` items stay, as in
            `deque(maxlen=...)`. With a lower `keep` the list is trimmed once in a while, at the same cost per item for
            any length: for long lists use three quarters of `maxlen`.
        max_bytes: the maximum of bytes of all items by shallow size, such as `"10 MiB"`. A larger item does not stay.
        sizeof: returns the size of an item in bytes; called once per item, when it is added. Adding an item raises
            `ConfigError` where the answer is no size.
        on_evict: called with a list of the evicted items, oldest first, after the list is within its bounds; not for
            items that you remove yourself. A failure is logged, at most once a minute, and counted.
        shrinkable: whether the list is asked to shrink when memory runs short (`memtools.cleanup`).

    Raises:
        ConfigError: for an argument that makes no sense; an existing list is unchanged.

    `list.append(x, item)`, and C code that calls it, such as `heapq.heappush`, bypass the bounds; `check()` and the
    next `extend` restore them.
    """

    __slots__ = ()

    @suggest_arguments(max_len="maxlen", maxsize="maxlen", max_size="maxlen", limit="maxlen= or max_bytes=")
    def __init__(
        self,
        iterable: Iterable[T] = (),
        /,
        maxlen: int | Unset | None = Unset.UNSET,
        *,
        keep: int | None = None,
        max_bytes: int | str | None = None,
        sizeof: Sizeof = sys.getsizeof,
        on_evict: OnEvict | None = None,
        shrinkable: bool = True,
    ) -> None:
        if maxlen is not Unset.UNSET or max_bytes is not None:
            limit = None if maxlen is Unset.UNSET else maxlen
            bounds = parse_bounds(limit, keep, max_bytes, sizeof, on_evict, shrinkable)
        elif isinstance(iterable, BoundedList) and (keep, on_evict, sizeof, shrinkable) == _NO_ARGUMENTS:
            bounds = iterable._bounds
        else:
            # Rebuilt as `type(x)(items)`, with nothing said of the bounds: no item may get lost by that.
            iterable = list(iterable)
            limit = max(len(iterable), DEFAULT_MAXLEN)
            bounds = parse_bounds(limit, keep, None, sizeof, on_evict, shrinkable)
        super().__init__()  # a second call empties the list, as in `list`
        self._initialise(bounds)
        self.extend(iterable)

    @property
    def maxlen(self) -> int | None:
        """The maximum number of items, or None if only bytes are bounded."""
        return self._bounds.maxlen

    @property
    def keep(self) -> int | None:
        """How many items an overflow leaves, or None if only bytes are bounded."""
        return self._bounds.keep

    @property
    def max_bytes(self) -> int | None:
        """The maximum of bytes of all items, by shallow size, or None."""
        return self._bounds.max_bytes

    def statistics(self) -> BoundedListStatistics:
        """Return how full the list is, and how many items it evicted."""
        return self._statistics_as(BoundedListStatistics)

    def check(self) -> int:
        """Restore the bounds after a call that bypassed them; return how many items were evicted.

        With `max_bytes`, the sizes of all items are taken anew.
        """
        return self._restore_bounds()

    @property
    def is_shrinking(self) -> bool:
        """Whether the last `shrink` stopped at its deadline; the next one continues where it stopped."""
        return self._batches is not None

    def shrink(self, level: Level, deadline: float) -> int:
        """Evict the oldest items because memory is short.

        Of more than 500 items, half are evicted at `WARNING`, and at least 250 stay; of more than 100, all but 50 are
        evicted at `CRITICAL`. They are counted as evicted and reported to `on_evict`.

        Args:
            level: how short memory is.
            deadline: when to return, in seconds of `time.monotonic()`. Items are evicted in batches, at least one; the
                next batch is only begun if it would end in time, should it take as long as the last one.

        Returns:
            The shallow size of the evicted items and of their places in the list, in bytes: the most that can have been
            freed. For a batch of more than 1,000 items it is an estimate from a sample.
        """
        batches = self._batches_for(level)
        if batches is None:
            return 0

        timeout_s = left_s = deadline - monotonic()
        freed_bytes = 0
        # Counted down, because a hook may put items back.
        remaining = len(self) - batches.target_length
        while remaining > 0 and left_s > 0:
            length = len(self)
            started = self._time_spent()
            count = min(batches.size, remaining, length)
            freed_bytes += self._evict_batch(count)
            remaining -= count
            batches.record(self._time_spent() - started, length, timeout_s)
            left_s = deadline - monotonic()
            if not batches.fits(left_s):
                break
        self._batches = batches if remaining > 0 else None
        return freed_bytes

    def _time_spent(self) -> float:
        # CPU time of the thread: on a busy machine, most of the wall time of a batch is that of other threads. With a
        # hook wall time, because the hook may wait.
        return thread_time() if self._hook is None else monotonic()

    def _batches_for(self, level: Level) -> BatchSizer | None:
        start, floor = SHRINK_ABOVE.get(level, (sys.maxsize, 0))
        length = len(self)
        batches, self._batches = self._batches, None
        if length <= start:
            return None

        target_length = max(floor, length // 2) if level == Level.WARNING else floor
        if batches is None or length <= batches.target_length:
            return BatchSizer(target_length, length)
        # Half of the items that there were at the start, not of those that are left; more if the list has grown since.
        batches.target_length = max(batches.target_length, target_length) if level == Level.WARNING else target_length
        return batches

    def _evict_batch(self, count: int) -> int:
        before = sys.getsizeof(self)
        items_bytes = _estimated_size(self[: count : count // _MAX_SAMPLE + 1], count)
        self._trim_to(len(self) - count)
        return items_bytes + before - sys.getsizeof(self)

    def copy(self) -> Self:
        """Return a bounded list of the same class with the same items and bounds."""
        return self.__copy__()

    def __copy__(self) -> Self:
        copied: Self = _make_empty(public_class_of(type(self)), self._bounds)
        copied._extend_unchecked(self)
        copied._enforce_bounds()
        restore_state(copied, self.__getstate__())
        return copied

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        copied: Self = _make_empty(public_class_of(type(self)), self._bounds)
        memo[id(self)] = copied  # before the items, which may hold this list
        copied.extend([deepcopy(item, memo) for item in self])
        restore_state(copied, deepcopy(self.__getstate__(), memo))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle restores the items before the state, so the bounds have to be arguments of the constructor.
        return _make_empty, (public_class_of(type(self)), self._bounds), self.__getstate__(), iter(self[:])

    def __getstate__(self) -> object:
        """Return the attributes that a subclass has added, as `object.__getstate__` does, without those of the list."""
        return added_state(super().__getstate__(), OWN_SLOTS)

    def _initialise(self, bounds: ListBounds) -> None:
        """Take over `bounds`, the class that they need, and the registration with `memtools.cleanup`."""
        public_class = public_class_of(type(self))
        needed = public_class if bounds.max_bytes is None else derived_class(public_class, ByteBoundedMixin)
        if needed is not type(self):
            self.__class__ = needed  # pyright: ignore[reportAttributeAccessIssue]  # it has the same layout
        self._set_bounds(bounds)
        if bounds.shrinkable:
            register(self)
        else:
            unregister(self)


def _estimated_size(sample: list[Any], count: int) -> int:
    """Return the shallow size of `count` items, estimated from a sample of them."""
    return sum(map(sys.getsizeof, sample)) * count // len(sample)


def _make_empty(cls: type[Any], bounds: ListBounds) -> Any:
    """Return an empty list of `cls`, without calling its `__init__`, which may take other arguments in a subclass."""
    made = list.__new__(cls)
    made._initialise(bounds)
    return made
