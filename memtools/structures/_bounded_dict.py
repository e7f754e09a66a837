"""`BoundedDict`: a dict with a maximum number of entries, or of bytes."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from time import monotonic
from typing import Any, Final, Self, TypeVar, cast

from memtools._records import record
from memtools._suggestions import suggest_arguments
from memtools.cleanup import register, unregister
from memtools.readings import Level
from memtools.structures._derived_class import derived_class, public_class_of
from memtools.structures._dict_bounds import (
    OWN_SLOTS,
    BoundedDictBase,
    DictBounds,
    Drop,
    parse_dict_bounds,
)
from memtools.structures._eviction import measure
from memtools.structures._subclass_state import added_state, restore_state
from memtools.structures._tracked_dict import TrackedDictMixin
from memtools.structures._window import DEFAULT_MAXLEN, SHRINK_ABOVE, Sizeof, Unset

K = TypeVar("K")
V = TypeVar("V")

_BATCH: Final = 256  # entries that `shrink` evicts between two looks at the clock
_SAMPLED: Final = 16  # entries of a batch whose size is taken: that takes longer than to release them


@record
class BoundedDictStatistics:
    """How full a bounded dict is, and what it evicted.

    Attributes:
        length: the number of entries, with those that have expired since the last change.
        maxlen: the maximum number of entries, or None.
        keep: how many entries an overflow leaves; None where `maxlen` is None.
        size_bytes: the remembered shallow size of keys and values in bytes; None without `max_bytes`.
        max_bytes: the maximum of bytes of all entries, or None.
        evicted: how many entries were evicted since the dict was made, the expired ones included.
        expired: how many of them had expired.
        hook_failures: calls of `on_evict` that raised.
    """

    length: int
    maxlen: int | None
    keep: int | None
    size_bytes: int | None
    max_bytes: int | None
    evicted: int
    expired: int
    hook_failures: int


class BoundedDict(BoundedDictBase[K, V]):
    """A `dict` that cannot grow without end: after every call `len(x) <= maxlen`, and the oldest entries are evicted.

    In everything else it is a dict: `isinstance`, views, iteration in the order of insertion, comparison, `**x`, JSON.
    `x | y` is a plain dict; `copy`, `copy.copy`, `deepcopy` and pickles are bounded dicts with the same bounds (a
    pickle leaves out `on_evict`, which belongs to its process). Code that rebuilds containers as `type(x)(items)` gets
    a bounded dict of all these items.

    Example:
        >>> seen = BoundedDict({"a": 1, "b": 2}, maxlen=2)
        >>> seen["c"] = 3
        >>> seen
        {'b': 2, 'c': 3}

    Threads: as a dict. The bound holds after the last of several concurrent calls has returned.

    Cost: a read is that of `dict`, a write one Python method more. With `max_bytes`, `ttl` or `drop="least_recent"`,
    reads by key are Python methods, too, and size, expiry or order are kept beside the entries.

    Args:
        contents: the first entries, a mapping or an iterable of pairs. The names of entries cannot be told from those
            of arguments, so write `BoundedDict({"a": 1})` or `BoundedDict(dict(a=1))`, not `BoundedDict(a=1)`.
        maxlen: the maximum number of entries; None, for no limit, only if `max_bytes` is given. Where no bound is
            named, it is the number of first entries, and at least 1,000; a bounded dict as `contents` hands its bounds
            on.
        keep: how many entries an overflow leaves; by default `maxlen`.
        max_bytes: the maximum of bytes of all keys and values, such as `"10 MiB"`. A larger entry does not stay.
        ttl: how long an entry is valid after it was set, in seconds. An expired entry is not found by `x[key]`, `get`,
            `in`, `pop` and `setdefault`, and dropped by the next write; iteration, `len`, views and comparison see it
            until then.
        drop: `"oldest"`: the entry whose key was added first goes first. `"least_recent"`: the entry that was set, or
            read by `x[key]`, `get` or `setdefault`, the longest time ago.
        sizeof: returns the size of a value in bytes; called once, when it is set, if `max_bytes` is given. The shallow
            size of the key is added. Setting a value raises `ConfigError` where the answer is no size.
        on_evict: called as `on_evict(key, value)` for each entry that is evicted or has expired, after the dict is
            within its bounds; not for an entry that you replace or remove. A failure is logged, at most once a minute,
            and counted.
        shrinkable: whether the dict is asked to shrink when memory runs short (`memtools.cleanup`).
        clock: returns monotonic seconds, for `ttl`.

    Raises:
        ConfigError: for an argument that makes no sense; an existing dict is unchanged.

    `dict.__setitem__(x, key, value)`, and C code that calls it, bypass the bounds; `check()` restores them.
    """

    __slots__ = ()

    @suggest_arguments(
        max_len="maxlen",
        maxsize="maxlen",
        max_size="maxlen",
        capacity="maxlen",
        limit="maxlen= or max_bytes=",
        timeout="ttl",
        timer="clock",
        getsizeof="sizeof",
    )
    def __init__(
        self,
        contents: Mapping[K, V] | Iterable[tuple[K, V]] = (),
        /,
        maxlen: int | Unset | None = Unset.UNSET,
        *,
        keep: int | None = None,
        max_bytes: int | str | None = None,
        ttl: float | None = None,
        drop: Drop = "oldest",
        sizeof: Sizeof = sys.getsizeof,
        on_evict: Callable[[K, V], object] | None = None,
        shrinkable: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given: Any = contents  # a mapping or pairs: `update` tells them apart
        options = (ttl, drop, sizeof, on_evict, shrinkable, clock)
        if maxlen is not Unset.UNSET or max_bytes is not None:
            limit = None if maxlen is Unset.UNSET else maxlen
            bounds = parse_dict_bounds(limit, keep, max_bytes, *options)
        elif isinstance(contents, BoundedDict) and keep is None and options == _NO_OPTIONS:
            bounds = cast("BoundedDict[K, V]", contents)._bounds
        else:
            # Rebuilt as `type(x)(items)`, with nothing said of the bounds: no entry may get lost by that.
            given = dict[K, V](given)
            bounds = parse_dict_bounds(max(len(given), DEFAULT_MAXLEN), keep, None, *options)
        super().__init__()
        self._initialise(bounds)
        self.update(given)

    @classmethod
    def fromkeys(  # type: ignore[override]  # typeshed says that `dict.fromkeys` of a subclass returns a dict
        cls, keys: Iterable[K], value: Any = None, /
    ) -> Self:
        """Return a bounded dict of these keys with one value; `maxlen` is their number, and at least 1,000.

        A subclass with a constructor of its own is called without arguments, as by `dict.fromkeys`.
        """
        named, plain = cast("Any", cls), cast("Any", BoundedDict)
        if named.__init__ is plain.__init__ and named.__new__ is plain.__new__:
            return cls(cast("Any", dict.fromkeys(keys, value)))
        made = cls()
        for key in keys:
            made[key] = value
        return made

    @property
    def maxlen(self) -> int | None:
        """The maximum number of entries, or None if only bytes are bounded."""
        return self._bounds.maxlen

    @property
    def keep(self) -> int | None:
        """How many entries an overflow leaves, or None if only bytes are bounded."""
        return self._bounds.keep

    @property
    def max_bytes(self) -> int | None:
        """The maximum of bytes of all keys and values, or None."""
        return self._bounds.max_bytes

    @property
    def ttl(self) -> float | None:
        """How long an entry is valid after it was set, in seconds, or None."""
        return self._bounds.ttl_s

    @property
    def drop(self) -> str:
        """Which entries go first: `"oldest"` or `"least_recent"`."""
        return self._bounds.drop

    def statistics(self) -> BoundedDictStatistics:
        """Return how full the dict is, and how many entries it evicted."""
        return self._statistics_as(BoundedDictStatistics, expired=self._expired)

    def check(self) -> int:
        """Drop what has expired, and restore the bounds after a call that bypassed them; return how many were evicted.

        With `max_bytes`, the sizes of all entries are taken anew.
        """
        return self._restore_bounds()

    @property
    def is_shrinking(self) -> bool:
        """Whether the last `shrink` stopped at its deadline; the next one continues where it stopped."""
        return self._is_shrinking

    def shrink(self, level: Level, deadline: float) -> int:
        """Evict the entries that are to be dropped first because memory is short, and what has expired.

        Of more than 500 entries, half are evicted at `WARNING`, and at least 250 stay; of more than 100, all but 50 are
        evicted at `CRITICAL`. They are counted as evicted and reported to `on_evict`.

        Args:
            level: how short memory is.
            deadline: when to return, in seconds of `time.monotonic()`. It is looked at after each 256 entries.

        Returns:
            The size of the evicted keys and values, in bytes, estimated from a sample: the most that can have been
            freed. The table of the dict is given back when the dict next grows.
        """
        self._drop_expired()
        start, floor = SHRINK_ABOVE.get(level, (sys.maxsize, 0))
        length = len(self)
        # Counted down, because a hook may put entries back.
        remaining = 0
        if length > start:
            remaining = length - (max(floor, length // 2) if level == Level.WARNING else floor)
        freed_bytes = 0
        while remaining > 0 and monotonic() < deadline:
            evicted = self._evict_count(min(_BATCH, remaining))
            remaining = remaining - len(evicted) if evicted else 0
            freed_bytes += self._estimated_size(evicted)
        self._is_shrinking = remaining > 0
        return freed_bytes

    def _estimated_size(self, evicted: list[tuple[K, V]]) -> int:
        sample = evicted[:: len(evicted) // _SAMPLED + 1]
        try:
            size = sum(sys.getsizeof(key) + max(measure(self._bounds.sizeof, value), 0) for key, value in sample)
        except Exception:
            return 0  # the figure only informs; a `sizeof` that fails must not keep memory from being given back
        return size * len(evicted) // len(sample) if sample else 0

    def copy(self) -> Self:
        """Return a bounded dict of the same class with the same entries and bounds; a `ttl` starts anew."""
        return self.__copy__()

    def __copy__(self) -> Self:
        copied: Self = _make_empty(public_class_of(type(self)), self._bounds)
        copied._add_all(self._live_items())
        restore_state(copied, self.__getstate__())
        return copied

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        copied: Self = _make_empty(public_class_of(type(self)), self._bounds)
        memo[id(self)] = copied  # before the entries, which may hold this dict
        copied._add_all([(deepcopy(key, memo), deepcopy(value, memo)) for key, value in self._live_items()])
        restore_state(copied, deepcopy(self.__getstate__(), memo))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle restores the entries before the state, so the bounds have to be arguments of the constructor.
        arguments = public_class_of(type(self)), self._bounds
        return _make_empty, arguments, self.__getstate__(), None, iter(self._live_items())

    def __getstate__(self) -> object:
        """Return the attributes that a subclass has added, as `object.__getstate__` does, without those of the dict."""
        return added_state(super().__getstate__(), OWN_SLOTS)

    def __sizeof__(self) -> int:
        # They belong to the dict as its own table does.
        return super().__sizeof__() + sum(map(sys.getsizeof, self._tables()))

    def _tables(self) -> list[Any]:  # Any: of several types
        """Return the tables that the dict keeps beside its own: the next keys to drop, the order of use, of expiry."""
        tracked = [self._order, self._expires] if self._bounds.are_tracked else []
        return [table for table in (self._oldest, *tracked) if table is not None]

    def _initialise(self, bounds: DictBounds) -> None:
        """Take over `bounds`, the class that they need, and the registration with `memtools.cleanup`."""
        public_class = public_class_of(type(self))
        needed = derived_class(public_class, TrackedDictMixin) if bounds.are_tracked else public_class
        if needed is not type(self):
            self.__class__ = needed  # pyright: ignore[reportAttributeAccessIssue]  # it has the same layout
        self._set_bounds(bounds)
        self._recompute()  # a second call of `__init__` keeps the entries, as in `dict`
        if bounds.shrinkable:
            register(self)
        else:
            unregister(self)


# ttl, drop, sizeof, on_evict, shrinkable and clock, where none is given
_NO_OPTIONS: Final = (None, "oldest", sys.getsizeof, None, True, time.monotonic)


def _make_empty(cls: type[Any], bounds: DictBounds) -> Any:
    """Return an empty dict of `cls`, without calling its `__init__`, which may take other arguments in a subclass."""
    made = dict.__new__(cls)
    made._initialise(bounds)
    return made
