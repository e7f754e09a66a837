"""Dictionaries with `max_bytes`, `ttl` or `drop="least_recent"`: size, expiry and last use of each entry are known.

This is a class apart so that a dictionary without them keeps the C methods for everything that reads. The order of use
is kept beside the entries: a read moves nothing in the dictionary itself, so that `for key in x: x[key]` works.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar, cast, overload

from memtools.structures import _dict_bounds
from memtools.structures._cache_store import HITS_NEED_LOCK
from memtools.structures._dict_bounds import BoundedDictBase, DictBounds
from memtools.structures._eviction import checked_size, wrong_size
from memtools.structures._single_flight import MISSING

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_NO_DEFAULT: Final = object()


class TrackedDictMixin(BoundedDictBase[K, V]):
    """The methods of a dictionary that knows size, expiry or last use of its entries.

    Every change happens under the lock of all bounded dictionaries. What it removes lives until the lock is released:
    destroying a value runs code of the program.
    """

    __slots__ = ()

    def _set_bounds(self, bounds: DictBounds) -> None:
        super()._set_bounds(bounds)
        self._order = OrderedDict()  # in the order of dropping; the value is the size
        self._expires = None if bounds.ttl_s is None else OrderedDict()  # in the order of setting
        self._is_sized = bounds.max_bytes is not None
        self._max_bytes = sys.maxsize if bounds.max_bytes is None else bounds.max_bytes
        self._size_bytes = 0
        self._touch = None
        self._is_exact = self._is_exact and bounds.ttl_s is None and bounds.max_bytes is None
        if bounds.drop == "least_recent":
            self._touch = _locked(self._order.move_to_end) if HITS_NEED_LOCK else self._order.move_to_end

    def __getitem__(self, key: K, /) -> V:
        if self._expires and self._has_expired(key):
            return self._absent(key)
        value: V = self._dict_getitem(key)
        if self._touch is not None:
            try:  # noqa: SIM105  # a third of the time of `suppress`
                self._touch(key)
            except KeyError:  # `__missing__` has not stored it, or `dict.__setitem__(x, key, value)` has
                pass
        return value

    @overload
    def get(self, key: K, default: None = None, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V, /) -> V: ...
    @overload
    def get(self, key: K, default: D, /) -> V | D: ...
    def get(self, key: K, default: Any = None, /) -> Any:
        """Return the value of `key`, or `default`."""
        if self._expires and self._has_expired(key):
            return default
        value = self._dict_get(key, MISSING)
        if value is MISSING:
            return default
        if self._touch is not None:
            try:  # noqa: SIM105
                self._touch(key)
            except KeyError:  # as above, or another thread has just removed it
                pass
        return value

    def __contains__(self, key: object, /) -> bool:
        """Return whether `key` is there and has not expired; this is no use of the entry."""
        if self._expires and self._has_expired(key):
            return False
        return self._dict_contains(key)

    def __setitem__(self, key: K, value: V, /) -> None:
        if not self._is_exact:
            self._put(key, value, self._keep)
            return
        # No lock: each step is one call of C code. What another thread does in between brings at most the order out of
        # step, which is noticed where it matters.
        order = self._order
        self._dict_setitem(key, value)
        order[key] = 0
        try:
            order.move_to_end(key)
            if len(self) <= self._limit:
                return
            oldest = order.popitem(False)[0]  # the first; by name it would take longer
        except KeyError:  # another thread has just removed it, or `__eq__` of a key has
            pass
        else:
            if self._dict_pop(oldest, MISSING) is not MISSING:
                self._evicted += 1
                if len(self) <= self._limit:
                    return
        self._enforce_bounds()

    def __delitem__(self, key: K, /) -> None:
        self._drop_expired()
        with _dict_bounds.lock:
            _removed = self._dict_getitem(key) if self._dict_contains(key) else None  # lives until the lock is released
            self._dict_delitem(key)
            self._forget(key)

    @overload
    def setdefault(self: "TrackedDictMixin[K, D | None]", key: K, default: None = None, /) -> D | None: ...
    @overload
    def setdefault(self, key: K, default: V, /) -> V: ...
    def setdefault(self, key: K, default: Any = None, /) -> Any:
        """Return the value of `key`; if there is none, set `default` and return it. This is atomic."""
        found = self.get(key, MISSING)
        if found is not MISSING:
            return found
        return self._put(key, default, self._keep, only_if_absent=True)

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, default: V, /) -> V: ...
    @overload
    def pop(self, key: K, default: D, /) -> V | D: ...
    def pop(self, key: K, default: Any = _NO_DEFAULT, /) -> Any:
        """Remove `key` and return its value, or `default`.

        Raises:
            KeyError: if there is no value and no default.
        """
        self._drop_expired()
        with _dict_bounds.lock:
            value = self._dict_pop(key, MISSING)
            self._forget(key)
        if value is not MISSING:
            return value
        if default is _NO_DEFAULT:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """Remove the entry that was added last and return its key and value.

        Raises:
            KeyError: if the dictionary is empty.
        """
        self._drop_expired()
        with _dict_bounds.lock:
            entry = self._dict_popitem()
            self._forget(entry[0])
        return entry

    def clear(self) -> None:
        """Remove all entries, without calling `on_evict`."""
        with _dict_bounds.lock:
            _removed = list(self._dict_items())  # live until the lock is released
            self._dict_clear()
            self._order.clear()
            if self._expires is not None:
                self._expires.clear()
            self._size_bytes = 0

    def _add_portion(self, portion: Any) -> bool:
        # `dict` judges what is no pair, with its own errors.
        entries: dict[K, V] = {}
        overflowed = False
        try:
            entries.update(portion)
        finally:
            for key, value in entries.items():
                overflowed = overflowed or (len(self) >= self._limit and not self._dict_contains(key))
                self._put(key, value, self._limit)
        return overflowed

    def _put(self, key: K, value: V, keep: int, *, only_if_absent: bool = False) -> V:
        """Set an entry and evict what is too much; return its value, or with `only_if_absent` the one that is there."""
        size = 0
        if self._is_sized:
            size = self._bounds.sizeof(value)
            if type(size) is not int or size < 0:
                size = self._checked_size(size)
            size += sys.getsizeof(key)
        dropped: list[tuple[K, V]] = []
        with _dict_bounds.lock:
            if self._expires:
                dropped = self._take_expired()
            if len(self._order) != len(self):
                self._recompute()
            replaced = self._dict_get(key, MISSING)  # lives until the lock is released
            if only_if_absent and replaced is not MISSING:
                value = cast("V", replaced)
            else:
                self._set(key, value, size)
                length = len(self)
                if length > self._limit:
                    dropped += self._take_oldest(length - keep)
                elif self._size_bytes > self._max_bytes:
                    dropped += self._take_oldest(0)
        del replaced
        if self._hook is not None:
            self._hook.notify(dropped)
        return value

    def _set(self, key: K, value: V, size: int) -> None:
        order, expires = self._order, self._expires
        self._dict_setitem(key, value)
        self._size_bytes += size - order.get(key, 0)
        order[key] = size
        try:
            if self._touch is not None:
                order.move_to_end(key)
            if expires is not None:
                expires[key] = self._bounds.clock() + cast("float", self._bounds.ttl_s)
                expires.move_to_end(key)
            if size > self._max_bytes:
                order.move_to_end(key, last=False)  # nothing else has to go for an entry that cannot stay
        except KeyError:  # `__eq__` of a key has just removed it
            pass

    def _forget(self, key: Any) -> None:
        self._size_bytes -= self._order.pop(key, 0)
        if self._expires is not None:
            self._expires.pop(key, None)

    def _take_oldest(self, count: int) -> list[tuple[K, V]]:
        # More than `count` where the bytes are too many; the order has just been brought in step by the caller, or will
        # be by the next change.
        taken: list[tuple[K, V]] = []
        order, expires = self._order, self._expires
        has_recomputed = False
        while order and (len(taken) < count or self._size_bytes > self._max_bytes):
            try:
                key, size = order.popitem(last=False)
            except KeyError:  # the hash of a key has changed
                if has_recomputed:
                    break
                has_recomputed = True
                self._recompute()
                continue
            self._size_bytes -= size
            if expires is not None:
                expires.pop(key, None)
            value = self._dict_pop(key, MISSING)
            if value is not MISSING:  # or it was removed by `dict.pop(x, key)`
                taken.append((key, value))
        self._evicted += len(taken)
        return taken

    def _take_expired(self) -> list[tuple[K, V]]:
        """Take out the entries that have expired; the caller holds the lock."""
        taken: list[tuple[K, V]] = []
        if not self._expires:
            return taken
        now = self._bounds.clock()
        while self._expires:
            try:
                key = next(iter(self._expires))
                if self._expires[key] > now:
                    break
            except KeyError:  # the hash of a key has changed
                self._recompute()
                break
            self._forget(key)
            value = self._dict_pop(key, MISSING)
            if value is not MISSING:
                taken.append((key, value))
        self._expired += len(taken)
        self._evicted += len(taken)
        return taken

    def _drop_expired(self) -> None:
        if self._expires:
            with _dict_bounds.lock:
                taken = self._take_expired()
            self._report(taken)

    def _enforce_bounds(self) -> None:
        with _dict_bounds.lock:
            if len(self._order) != len(self):
                self._recompute()
            dropped = self._take_expired()
            length = len(self)
            dropped += self._take_oldest(length - self._keep if length > self._limit else 0)
        self._report(dropped)

    def _recompute(self) -> None:
        """Remember every entry anew: `dict.__setitem__(x, key, value)` and the like bypass these methods."""
        with _dict_bounds.lock:
            entries = list(self._dict_items())
            order: dict[K, None] = {}
            expires: dict[K, float] = {}
            with suppress(KeyError):  # the hash of a key has changed
                order = {key: None for key in self._order if self._dict_contains(key)}
                expires.update(self._expires or {})
            sizes = {key: self._size_of(key, value) if self._is_sized else 0 for key, value in entries}
            self._order.clear()
            self._size_bytes = sum(sizes.values())
            self._order.update((key, sizes[key]) for key in order)
            self._order.update((key, size) for key, size in sizes.items() if key not in order)
            if self._expires is not None:
                expires_at = self._bounds.clock() + cast("float", self._bounds.ttl_s)
                self._expires.clear()
                self._expires.update((key, at) for key, at in expires.items() if key in sizes)
                self._expires.update((key, expires_at) for key in sizes if key not in expires)

    def _live_items(self) -> list[tuple[K, V]]:
        return [(key, value) for key, value in list(self._dict_items()) if not self._has_expired(key)]

    def _has_expired(self, key: Any) -> bool:
        if not self._expires:
            return False
        expires_at = self._expires.get(key)
        return expires_at is not None and expires_at <= self._bounds.clock()

    def _absent(self, key: K) -> V:
        # As `dict.__getitem__` does for a key that is not there.
        missing = getattr(type(self), "__missing__", None)
        if missing is None:
            raise KeyError(key)
        return cast("V", missing(self, key))

    def _size_of(self, key: K, value: V) -> int:
        return self._checked_size(self._bounds.sizeof(value)) + sys.getsizeof(key)

    def _checked_size(self, answer: object) -> int:
        size = checked_size(self._bounds.sizeof, answer)
        if size < 0:
            raise wrong_size(self._bounds.sizeof, size)
        return size


def _locked(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return `function` under the lock, for builds where reads run at once."""

    def locked(key: Any) -> None:
        with _dict_bounds.lock:
            function(key)

    return locked
