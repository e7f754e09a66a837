"""Who holds what grows: asked only once something does.

Covers: three counts of the heap with calls in between, the names of tasks, threads and descriptors that were left.
Leaves to others: the calls (`_find_leaks`), the climb to a root (`memtools.heap`).
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from memtools.heap import Answer, Census, census, growing, why_alive
from memtools.readings import descriptors
from memtools.testing._signals import task_names, thread_names

_MOST_NAMED: Final = 3
_SHORT_S: Final = 0.5  # for one climb
# Between two counts are some thousand calls at most: what is kept of each hundredth is a short list.
_SHORTEST: Final = 4
_NUMBER: Final = re.compile(r"[0-9]+")


class Culprits:
    """The search for who holds what grows.

    Args:
        calls: how many calls to make between two counts.
    """

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._counts: list[Census] = []
        self._names = _names()

    def plan(self) -> Iterator[int]:
        """Yield how many calls to make next; the heap is counted before each and after the last."""
        for _ in range(2):
            self._counts.append(census(least=_SHORTEST))
            yield self._calls
        self._counts.append(census(least=_SHORTEST))

    def answers(self) -> tuple[Answer, ...]:
        """Return who holds what grew, the largest growth first."""
        grown = growing(*self._counts, most=_MOST_NAMED, least=2)[:_MOST_NAMED]
        self._counts.clear()  # they are not what leaks
        answers = (why_alive(one, budget_s=_SHORT_S) for one in grown)
        return tuple(answer for answer in answers if answer.ways and not _is_our_book(answer))

    def left(self) -> tuple[str, ...]:
        """Return which tasks, threads and descriptors there are more of than before, one line each."""
        more = (_names() - self._names).most_common(_MOST_NAMED)
        return tuple(f"{what}: {count} more" for what, count in more if count > 1)


def _is_our_book(answer: Answer) -> bool:
    # Owners that are open are listed there: it grows along with tasks that do not end, and says nothing more.
    return answer.ways[0].holders[-1:] == ("memtools.ledger._book._open",)


def _names() -> Counter[str]:
    # Numbers differ from one to the next; what they have in common is the name.
    names = [f"task {name}" for name in task_names()]
    names += [f"thread {name}" for name in thread_names()]
    names += [f"descriptor {target}" for target in descriptors() or ()]
    return Counter(_NUMBER.sub("#", name) for name in names)
