"""Where to put work: the process with most room, without a herd.

Of the processes that fit, two are drawn at random and the one with more room is taken ("power of two choices",
Mitzenmacher, 2001): all callers taking the best one would overload it until it tells again. What a caller has just sent
there counts against it, by this caller's own book, until it has told again.

A pick looks at a few processes and not at all of them: those that are known not to fit are sorted out once per reading.

A file of its own because other schedulers than a `Cluster` place work by it, too.
"""

import random
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Final

from memtools._forks import register_object_after_fork
from memtools.cluster._carrier import Node
from memtools.readings import Level

_HOLD_S: Final = 10.0  # a process that was critical gets nothing for so long after
_DRAWS: Final = 8  # after which all processes are looked at


class _Candidate:
    """A process that work may be sent to."""

    __slots__ = ("book", "left_bytes", "node")

    def __init__(self, node: Node, left_bytes: int, book: list[tuple[float, int]]) -> None:
        self.node = node
        self.left_bytes = left_bytes
        self.book = book  # when how much was sent there, as far as it does not show in its reading yet

    def score(self) -> float:
        """Return what is left, as a share of its limit."""
        limit = self.node.limit_bytes
        return self.left_bytes / limit if limit else float(self.left_bytes)


class Router:
    """Picks processes, and remembers what it has picked them for.

    Threads: any.

    Args:
        clock: monotonic seconds.
        draw: a random number from 0 to 1.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._held_until: dict[str, float] = {}
        self._books: dict[str, list[tuple[float, int]]] = {}
        self._candidates: list[_Candidate] = []  # with least left first, when they were read
        self._left_when_read: list[int] = []  # of each, then
        self._too_much_bytes: float = float("inf")  # for which there was no room any more
        self._renew_after_fork()
        register_object_after_fork(self, Router._renew_after_fork)

    def _renew_after_fork(self) -> None:
        self._lock = threading.Lock()

    def update(self, nodes: Iterable[Node]) -> None:
        """Take what all processes have last told; those that are stale, critical or were so a moment ago get nothing.

        Cost: some microseconds for each process.
        """
        now = self._clock()
        with self._lock:
            held: dict[str, float] = {}
            books: dict[str, list[tuple[float, int]]] = {}
            found: list[_Candidate] = []
            for node in nodes:
                told_at = now - node.age_s
                book = [sent for sent in self._books.get(node.id, ()) if sent[0] > told_at]
                if book:
                    books[node.id] = book
                until = now + _HOLD_S if node.level is Level.CRITICAL else self._held_until.get(node.id, now)
                if until > now:
                    held[node.id] = until
                elif node.headroom_bytes is not None and not node.is_stale:
                    unused = max(node.leased_bytes - node.used_bytes, 0)
                    left_bytes = node.headroom_bytes - unused - sum(size for _, size in book)
                    found.append(_Candidate(node, left_bytes, book))
            found.sort(key=lambda candidate: candidate.left_bytes)
            self._held_until, self._books, self._candidates = held, books, found
            self._left_when_read = [candidate.left_bytes for candidate in found]
            self._too_much_bytes = float("inf")

    def pick(self, needs_bytes: int) -> Node | None:
        """Return a process that has room for so many bytes, and count them against it; None where there is none."""
        with self._lock:
            best = self._best_of_two(needs_bytes)
            if best is None:
                return None
            best.left_bytes -= needs_bytes
            best.book.append((self._clock(), needs_bytes))
            self._books[best.node.id] = best.book
            return best.node

    def _best_of_two(self, needs_bytes: int) -> _Candidate | None:
        if needs_bytes >= self._too_much_bytes:
            return None  # room becomes less until the next update
        candidates = self._candidates
        first = bisect_left(self._left_when_read, needs_bytes)
        count = len(candidates) - first
        found: _Candidate | None = None
        if count > 2:
            for _ in range(_DRAWS):
                drawn = candidates[first + int(self._draw() * count)]
                if drawn.left_bytes < needs_bytes or drawn is found:
                    continue
                if found is not None:
                    return max(found, drawn, key=_Candidate.score)
                found = drawn
        return self._best_of_two_of_all(needs_bytes, first)

    def _best_of_two_of_all(self, needs_bytes: int, first: int) -> _Candidate | None:
        fitting = [candidate for candidate in self._candidates[first:] if candidate.left_bytes >= needs_bytes]
        count = len(fitting)
        if not count:
            self._too_much_bytes = needs_bytes
            return None
        if count > 2:
            one = int(self._draw() * count)
            other = (one + 1 + int(self._draw() * (count - 1))) % count
            fitting = [fitting[one], fitting[other]]
        return max(fitting, key=_Candidate.score)
