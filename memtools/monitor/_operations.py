"""Count operations, and have every n-th of them look at memory.

Covers: the account of each name, in bounded space; sampling. Leaves to others: functions as operations (`_watched`),
the look itself (`_lookout`).

Threads: any; no call is lost. Cost: some 0.3 us for an operation that is not sampled.
"""

import threading
from collections.abc import Callable
from itertools import count
from typing import Final

from memtools.monitor._statistics import OperationStatistics

# As in the ledger's accounts: names may come from requests.
MAX_NAMES: Final = 256
MAX_NAME_LENGTH: Final = 200
OTHER: Final = "<other>"


class Operation:
    """The account of one name. `note` is the hot path of the whole room."""

    __slots__ = ("_every", "_sample", "_tick", "calls", "failures", "lock", "longest_s", "name", "total_s")

    def __init__(self, name: str, every: int, tick: Callable[[], int], sample: Callable[[], None]) -> None:
        self.name = name
        self.lock = threading.RLock()  # a finaliser may record in the middle of a record
        self.calls = 0
        self.failures = 0
        self.total_s = 0.0
        self.longest_s = 0.0
        self._every = every
        self._tick = tick
        self._sample = sample

    def note(self, duration_s: float, failed: bool = False) -> None:
        """Add an operation that has ended; the n-th of all names looks at memory."""
        with self.lock:
            self.calls += 1
            self.total_s += duration_s
            if duration_s > self.longest_s:
                self.longest_s = duration_s
            if failed:
                self.failures += 1
        if not self._tick() % self._every:
            self._sample()

    def statistics(self) -> OperationStatistics:
        """Return the sums up to now."""
        with self.lock:
            return OperationStatistics(self.name, self.calls, self.failures, self.total_s, self.longest_s)


class Operations:
    """The operations of one monitor, by name.

    Args:
        every: operations between two samples.
        sample: called on each sampled operation; must not raise.
    """

    def __init__(self, every: int, sample: Callable[[], None]) -> None:
        self._every = every
        self._sample = sample
        self._tick = count(1).__next__  # one C call: no two threads get the same number
        self._lock = threading.RLock()
        self._by_name: dict[str, Operation] = {}

    def named(self, name: str) -> Operation:
        """Return the account of `name`; of `<other>` when there are too many names already."""
        known = self._by_name.get(name)
        if known is not None:
            return known

        name = presentable(name)
        with self._lock:
            if name not in self._by_name:
                if len(self._by_name) >= MAX_NAMES:
                    name = OTHER
                self._by_name.setdefault(name, Operation(name, self._every, self._tick, self._sample))
            return self._by_name[name]

    def statistics(self) -> tuple[OperationStatistics, ...]:
        """Return the accounts, the one with the longest total first."""
        with self._lock:
            known = tuple(self._by_name.values())
        return tuple(sorted((one.statistics() for one in known), key=lambda one: one.total_s, reverse=True))

    def renew_locks(self) -> None:
        """Make new locks: in a forked child nobody will release the old ones."""
        self._lock = threading.RLock()
        for operation in tuple(self._by_name.values()):
            operation.lock = threading.RLock()


def presentable(name: str) -> str:
    """Return `name` as logs and reports may show it: cut to 200 characters, without line breaks of its own."""
    name = name[:MAX_NAME_LENGTH]
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
