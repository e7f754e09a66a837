"""A list that cannot grow without end: what people construct, copy, send and ask for figures.

Covers: arguments, copies and pickles, `statistics`, `check`, `shrink`.
Leaves to others: keeping to the bounds (`_window`, `_weighed`), telling of what went (`_eviction`), when to shrink
(`memtools.monitor`).
"""

import sys
from collections.abc import Iterable
from copy import deepcopy
from time import monotonic, thread_time
from typing import Any, Self, TypeVar, cast

from memtools._records import record
from memtools.cleanup import register, unregister
from memtools.readings import Level
from memtools.structures._byte_bounded import weighed
from memtools.structures._eviction import OnEvict
from memtools.structures._window import OWN_SLOTS, ListBounds, Sizeof, Strokes, Window, parse_bounds

T = TypeVar("T")
_State = tuple[dict[str, Any] | None, dict[str, Any]]  # what `object.__getstate__` gives: attributes, slots

# By level: lists longer than the first are shortened, and the second stays. The guide: beyond 500, down to 250.
_SHRINK_ABOVE = {Level.WARNING: (500, 250), Level.CRITICAL: (100, 50)}
_WEIGHED = 1000  # items of one stroke, at most: to weigh an item takes longer than to let it go


@record
class BoundedListStatistics:
    """How full a bounded list is, and what had to go.

    Attributes:
        length: items now.
        maxlen: the most items, or None.
        keep: how many items an overflow leaves, or None where `maxlen` is None.
        bytes: shallow size of the items in bytes, as remembered; None without `max_bytes`, as nothing is weighed then.
        max_bytes: the most bytes of items, or None.
        evicted: items that had to go since the list was made.
        hook_failures: calls of `on_evict` that raised.
    """

    length: int
    maxlen: int | None
    keep: int | None
    size_bytes: int | None
    max_bytes: int | None
    evicted: int
    hook_failures: int


class BoundedList(Window[T]):
    """A `list` that keeps the newest items: `len(x) <= maxlen` after every call, and the oldest go on overflow.

    In all else it is a list, at a list's own speed: `isinstance`, indexing, slices, iteration, comparison, `sort`,
    JSON. Slices and `x + y` are plain lists; `copy`, `copy.copy`, `deepcopy` and pickles are bounded lists with the
    same bounds (a pickle leaves `on_evict` behind, which belongs to its process).

    >>> recent = BoundedList([1, 2, 3], maxlen=3)
    >>> recent.append(4)
    >>> recent
    [2, 3, 4]

    Args:
        iterable: what it holds at first.
        maxlen: the most items. May be left out only where `max_bytes` is given.
        keep: how many items an overflow leaves. By default `maxlen`: exactly the last `maxlen` stay, as in
            `deque(maxlen=...)`; then each `append` to a full list moves the whole list. With less, the list is cut in
            one stroke once in a while, at the same price for any length: for long lists use three quarters of it.
        max_bytes: the most bytes of items by shallow size, such as `"10 MiB"`. An item larger than that cannot stay.
        sizeof: gives an item's size in bytes, and is asked once per item, when it comes in.
        on_evict: called with a list of the items that had to go, oldest first, after the list is within its bounds;
            what it raises is logged at most once a minute and counted. Items that you remove yourself are not told.
        shrinkable: whether a monitor may shorten it when memory runs short.

    Raises:
        ConfigError: for bounds that make no sense; an existing list is unchanged.

    What bypasses the bounds: `list.append(x, item)` and C code that calls it, such as `heapq.heappush`; `check()` and
    the next `extend` restore them.

    Threads: as a list. The bound holds when the last of several calls has returned; with `max_bytes`, use a lock.
    Cost: see the page on performance; `append` is a C method where that was built, reading is not touched.
    """

    __slots__ = ()

    def __init__(
        self,
        iterable: Iterable[T] = (),
        /,
        maxlen: int | None = None,
        *,
        keep: int | None = None,
        max_bytes: int | str | None = None,
        sizeof: Sizeof = sys.getsizeof,
        on_evict: OnEvict | None = None,
        shrinkable: bool = True,
    ) -> None:
        bounds = parse_bounds(maxlen, keep, max_bytes, sizeof, on_evict, shrinkable)
        super().__init__()  # a second call empties the list, as a list's does
        self._enter(bounds)
        self.extend(iterable)

    @property
    def maxlen(self) -> int | None:
        """The most items, or None where bytes alone decide."""
        return self._bounds.maxlen

    @property
    def keep(self) -> int | None:
        """How many items an overflow leaves, or None where bytes alone decide."""
        return self._bounds.keep

    @property
    def max_bytes(self) -> int | None:
        """The most bytes of items, by shallow size, or None."""
        return self._bounds.max_bytes

    def statistics(self) -> BoundedListStatistics:
        """Return how full the list is, and what had to go."""
        bounds = self._bounds
        return BoundedListStatistics(
            length=len(self),
            maxlen=bounds.maxlen,
            keep=bounds.keep,
            size_bytes=None if bounds.max_bytes is None else self._bytes,
            max_bytes=bounds.max_bytes,
            evicted=self._evicted,
            hook_failures=0 if self._eviction is None else self._eviction.failures,
        )

    def check(self) -> int:
        """Restore the bounds after something bypassed them; return how many items had to go.

        With `max_bytes`, all items are weighed anew.
        """
        before = self._evicted
        self._reweigh()
        self._fit()
        return self._evicted - before

    @property
    def is_shrinking(self) -> bool:
        """Whether the last `shrink` had to stop at its deadline; the next one goes on where it stopped."""
        return self._strokes is not None

    def shrink(self, level: Level, deadline: float) -> int:
        """Let the oldest items go because memory is short.

        Beyond 500 items, half go at `WARNING`, and 250 stay; beyond 100, all but 50 go at `CRITICAL`. They are counted
        as evicted and told to `on_evict`. Where the deadline comes first, `is_shrinking` is True.

        Args:
            level: how short memory is.
            deadline: when to return, in seconds of `time.monotonic()`. Items go in strokes, one at least; no other is
                begun that would not be done in time, as long as items take no longer to go than those before them.

        Returns:
            The shallow size of what went and of the places it took, in bytes: the most that can have been freed. Of a
            stroke of more than 1,000 items, one in so many is weighed.
        """
        strokes = self._strokes_to(level)
        if strokes is None:
            return 0

        whole_s = left_s = deadline - monotonic()
        given_back = 0
        # Counted down, not `len` awaited: a hook may put items back.
        todo = len(self) - strokes.goal
        while todo > 0 and left_s > 0:
            length = len(self)
            began = self._spent()
            count = min(strokes.size, todo, length)
            given_back += self._give_back(count)
            todo -= count
            strokes.took(self._spent() - began, length, whole_s)
            left_s = deadline - monotonic()
            if not strokes.has_time(left_s):
                break
        self._strokes = strokes if todo > 0 else None
        return given_back

    def _spent(self) -> float:
        # What a stroke takes by itself: on a busy machine, most of the wall time is that of others. A hook may wait.
        return thread_time() if self._eviction is None else monotonic()

    def _strokes_to(self, level: Level) -> Strokes | None:
        start, floor = _SHRINK_ABOVE.get(level, (sys.maxsize, 0))
        length = len(self)
        strokes, self._strokes = self._strokes, None
        if length <= start:
            return None

        goal = max(floor, length // 2) if level == Level.WARNING else floor
        if strokes is None or length <= strokes.goal:
            return Strokes(goal, length)
        # Half of what was there when it began, not of what is left; more where the list has grown since.
        strokes.goal = max(strokes.goal, goal) if level == Level.WARNING else goal
        return strokes

    def _give_back(self, count: int) -> int:
        before = sys.getsizeof(self)
        items_bytes = _weigh(self[: count : count // _WEIGHED + 1], count)
        self._drop(slice(None, count), count)
        return items_bytes + before - sys.getsizeof(self)

    def copy(self) -> Self:
        """Return a bounded list of the same class with the same items and bounds."""
        return self.__copy__()

    def __copy__(self) -> Self:
        twin: Self = _rebuild(_plain(type(self)), self._bounds)
        twin._adopt(self)
        twin._fit()
        _restore(twin, self.__getstate__())
        return twin

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        twin: Self = _rebuild(_plain(type(self)), self._bounds)
        memo[id(self)] = twin  # before the items, which may hold this list
        twin.extend([deepcopy(item, memo) for item in self])
        _restore(twin, deepcopy(self.__getstate__(), memo))
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle gives the items before the state, so the bounds have to come with the making of the list.
        return _rebuild, (_plain(type(self)), self._bounds), self.__getstate__(), iter(self[:])

    def __getstate__(self) -> object:
        """Return what a subclass has added, as `object.__getstate__` does; the bounds travel by themselves."""
        attributes, slots = cast("_State", super().__getstate__())
        added = {name: value for name, value in slots.items() if name not in OWN_SLOTS}
        return (attributes, added) if added else attributes

    def _enter(self, bounds: ListBounds) -> None:
        """Become the class that these bounds need, take them, and join the register or leave it."""
        plain = _plain(type(self))
        kind = plain if bounds.max_bytes is None else weighed(plain)
        if kind is not type(self):
            self.__class__ = kind  # pyright: ignore[reportAttributeAccessIssue]  # same layout: see `weighed`
        self._bind(bounds)
        if bounds.shrinkable:
            register(self)
        else:
            unregister(self)


def _weigh(sample: list[Any], count: int) -> int:
    """Return the shallow size of `count` items, of which `sample` are some."""
    return sum(map(sys.getsizeof, sample)) * count // len(sample)


def _plain(kind: type[Any]) -> type[Any]:
    """Return the class that the user knows: for a list bounded by bytes, the one that `weighed` was given."""
    plain: type[Any] = kind.__dict__.get("_plain_kind", kind)
    return plain


def _rebuild(kind: type[Any], bounds: ListBounds) -> Any:
    """Make an empty list of `kind` within `bounds`, without its `__init__`, whose arguments may be its own."""
    twin = list.__new__(kind)
    twin._enter(bounds)
    return twin


def _restore(twin: Any, state: object) -> None:
    """Give `twin` the attributes that a subclass has added, as `copy.copy` would."""
    if state is None:
        return
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(state)
        return

    attributes, slots = cast("_State", state if isinstance(state, tuple) else (state, {}))
    if attributes:
        twin.__dict__.update(attributes)
    for name, value in slots.items():
        setattr(twin, name, value)
