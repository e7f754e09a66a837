"""Where the history of a call is kept: one for the function, one per key, or one per object.

Leaves to others: what is kept (`_call_records`), when (`_bounded_history`).
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Final

from memtools.decorators._call_records import History, HistorySummary, summarise

MAX_KEYS: Final = 1000


class KeyedHistory(Mapping[Hashable, History]):
    """One history per key, for the keys used last; 1,000 at most. Safe from any thread."""

    def __init__(self, make: Callable[[], History], *, max_keys: int = MAX_KEYS) -> None:
        self._make = make
        self._max_keys = max_keys
        self._lock = threading.RLock()
        self._by_key: OrderedDict[Hashable, History] = OrderedDict()

    def at(self, key: Hashable) -> History:
        """Return the history for `key`, a new one if need be; the key unused for longest may go for it."""
        with self._lock:
            history = self._by_key.get(key)
            if history is None:
                history = self._by_key[key] = self._make()
                if len(self._by_key) > self._max_keys:
                    self._by_key.popitem(last=False)
            self._by_key.move_to_end(key)
            return history

    def summary(self) -> HistorySummary:
        """Return the summary over all keys."""
        with self._lock:
            return summarise(call for history in self._by_key.values() for call in history)

    def __getitem__(self, key: Hashable) -> History:
        with self._lock:
            return self._by_key[key]

    def __iter__(self) -> Iterator[Hashable]:
        with self._lock:
            return iter(tuple(self._by_key))

    def __len__(self) -> int:
        return len(self._by_key)

    def __repr__(self) -> str:
        return f"<KeyedHistory of {len(self)} keys>"


class ObjectHistories:
    """One history per object, for as long as the object lives.

    By identity: objects that compare equal have histories of their own, and none has to be hashable.
    """

    def __init__(self, make: Callable[[], History], shared: History) -> None:
        self._make = make
        self._shared = shared
        self._by_id: dict[int, tuple[weakref.ref[Any], History]] = {}

    def at(self, instance: object) -> History:
        """Return the history of `instance`, a new one if need be.

        Objects that cannot be weakly referenced get the shared one: nobody would say when theirs can go.
        """
        key = id(instance)
        found = self._by_id.get(key)
        if found is not None and found[0]() is instance:
            return found[1]

        by_id = self._by_id
        try:
            reference = weakref.ref(instance, lambda gone: by_id.pop(key, None) if _is_at(by_id, key, gone) else None)
        except TypeError:
            return self._shared
        history = self._make()
        by_id[key] = (reference, history)
        return history

    def __len__(self) -> int:
        return len(self._by_id)


def _is_at(by_id: dict[int, tuple[weakref.ref[Any], History]], key: int, gone: weakref.ref[Any]) -> bool:
    # A new object may have the id of the one that is gone, and its history is in place already.
    found = by_id.get(key)
    return found is not None and found[0] is gone
