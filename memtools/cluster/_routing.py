"""Where to put work: the process with most room, without a herd.

Of the processes that fit, two are drawn at random and the one with more room is taken ("power of two choices",
Mitzenmacher, 2001): all callers taking the best one would overload it until it tells again. What a caller has just sent
there counts against it, by this caller's own book, until it has told again.

A file of its own because other schedulers than a `Cluster` place work by it, too.
"""

import random
import time
from collections.abc import Callable, Iterable
from typing import Final

from memtools.cluster._carrier import Node
from memtools.readings import Level

_HOLD_S: Final = 10.0  # a process that was critical gets nothing for so long after


class Router:
    """Picks processes, and remembers what it has picked them for.

    Args:
        clock: monotonic seconds.
        draw: returns so many distinct elements of a list.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[list[Node], int], list[Node]] = random.sample,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._debits: dict[str, list[tuple[float, int]]] = {}
        self._held_until: dict[str, float] = {}

    def pick(self, nodes: Iterable[Node], needs_bytes: int) -> Node | None:
        """Return a process that has room for so many bytes, and count them against it; None where there is none."""
        now = self._clock()
        known = list(nodes)
        left = {node.id: self._left_bytes(node, now) for node in known}
        fitting = [node for node in known if left[node.id] >= needs_bytes and not self._is_held(node, now)]
        if not fitting:
            return None
        drawn = self._draw(fitting, 2) if len(fitting) > 2 else fitting
        best = max(drawn, key=lambda node: self._score(node, left[node.id]))
        self._debits.setdefault(best.id, []).append((now, needs_bytes))
        return best

    def _left_bytes(self, node: Node, now: float) -> int:
        """Return the headroom of a process, less what is under way to it and does not show in it yet."""
        if node.headroom_bytes is None:
            return 0
        told_at = now - node.age_s
        sent = [(at, size) for at, size in self._debits.get(node.id, ()) if at > told_at]
        if sent:
            self._debits[node.id] = sent
        else:
            self._debits.pop(node.id, None)
        unused = max(node.leased_bytes - node.used_bytes, 0)
        return node.headroom_bytes - unused - sum(size for _, size in sent)

    def _is_held(self, node: Node, now: float) -> bool:
        if node.level is Level.CRITICAL:
            self._held_until[node.id] = now + _HOLD_S
        elif now >= self._held_until.get(node.id, now):
            self._held_until.pop(node.id, None)
            return node.is_stale
        return True

    @staticmethod
    def _score(node: Node, left_bytes: int) -> float:
        return left_bytes / node.limit_bytes if node.limit_bytes else float(left_bytes)
