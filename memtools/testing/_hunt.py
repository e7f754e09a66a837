"""Call again and again until it is clear whether something grows.

Covers: how many calls are made in each round, when enough is known, what was counted in between.
Leaves to others: making the calls (`_find_leaks`), the verdict (`memtools.analysis`), who holds it (`_culprits`).

The first rounds are short. Only where they do not look clean does it go on, each round twice as long as the one before:
what grows by the round, or until something is full, gets slower by the call, and a leak does not.
"""

import gc
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from memtools.analysis import LEAST_ROUNDS, Answer, Round, Verdict, judge_growth_by_call
from memtools.records import record
from memtools.testing._collecting import only_what_is_new
from memtools.testing._signals import Signal

_MOST_ROUNDS: Final = 40  # or twenty more than were asked for
_DOUBLINGS: Final = 3  # at least, before a leak is called one
# A function that is quick is called so often that a cache of some thousand entries is full by then.
_MANY_CALLS: Final = 20_000


@record
class Pace:
    """How long a hunt goes on.

    Attributes:
        rounds: rounds before the first verdict.
        calls: calls in each of them.
        warmup: calls before anything is counted.
        patience_s: how long it goes on at least, once something grows, unless it has called 20,000 times.
        deadline_s: how long it goes on at most; what is not clear by then is inconclusive.
    """

    rounds: int
    calls: int
    warmup: int
    patience_s: float
    deadline_s: float


class Hunt:
    """One hunt.

    Args:
        signals: what is counted.
        pace: how long it goes on.
        tell: told after each round, and once before the first, how many are done, how many calls were made, and what
            the first signal reads.
    """

    def __init__(
        self, signals: Sequence[Signal], pace: Pace, tell: Callable[[int, int, int], object] | None = None
    ) -> None:
        self.calls = 0
        self.is_over_time = False
        self._signals = tuple(signals)
        self._pace = pace
        self._tell = tell
        self._done = 0
        # Made before anything is counted: what a hunt itself needs must not grow from round to round.
        width = len(self._signals)
        self._most = max(_MOST_ROUNDS, pace.rounds + _MOST_ROUNDS // 2)
        self._before = array("q", bytes(8 * width))
        self._grown = [array("q", bytes(8 * self._most)) for _ in self._signals]
        self._lengths = array("q", bytes(8 * self._most))

    def plan(self) -> Iterator[int]:
        """Yield how many calls to make next; what they left is counted when the next number is asked for."""
        if self._pace.warmup:
            yield self._pace.warmup
        with only_what_is_new():
            yield from self._count()

    def _count(self) -> Iterator[int]:
        begun = time.perf_counter()
        self._look(0)
        calls = self._pace.calls
        for _ in range(self._pace.rounds):
            if self._is_enough(calls):
                return
            yield calls
            self._look(calls)
        doublings = 0
        while self._must_go_on(doublings, time.perf_counter() - begun) and not self._is_enough(calls):
            yield calls
            self._look(calls)
            doublings += 1
            calls *= 2

    def _look(self, calls: int) -> None:
        gc.collect()
        for place, signal in enumerate(self._signals):
            now = signal.read()
            self._grown[place][self._done] = now - self._before[place]
            self._before[place] = now
        if calls:
            self._lengths[self._done] = calls
            self._done += 1
            self.calls += calls
        if self._tell is not None:
            self._tell(self._done, self.calls, self._before[0])

    def _must_go_on(self, doublings: int, spent_s: float) -> bool:
        answers = {verdict.answer for _, verdict in self.verdicts()}
        if answers == {Answer.CLEAN} or self._done >= self._most:
            return False
        if spent_s >= self._pace.deadline_s:
            self.is_over_time = True
            return False
        is_decided = Answer.LEAK in answers and doublings >= _DOUBLINGS
        return not (is_decided and (spent_s >= self._pace.patience_s or self.calls >= _MANY_CALLS))

    def _is_enough(self, calls: int) -> bool:
        # Three rounds can tell a leak; from then on it is looked ahead, as each round is twice the one before.
        if self._done < LEAST_ROUNDS:
            return False
        for signal, grown in zip(self._signals, self._grown, strict=True):
            so_far = sum(grown[: self._done])
            if so_far + so_far * calls // self.calls > signal.enough:
                return True
        return False

    @property
    def is_clean(self) -> bool:
        """Whether no signal grows."""
        return all(verdict.answer is Answer.CLEAN for _, verdict in self.verdicts())

    def verdicts(self) -> list[tuple[Signal, Verdict]]:
        """Return what each signal says so far."""
        found: list[tuple[Signal, Verdict]] = []
        for signal, grown in zip(self._signals, self._grown, strict=True):
            rounds = [Round(self._lengths[place], grown[place]) for place in range(self._done)]
            found.append((signal, judge_growth_by_call(rounds, tolerance=signal.tolerance)))
        return found
