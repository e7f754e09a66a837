"""Which of the things that grow explain a leak, and in which order they are told; each holder is told once."""

import builtins
import re
import sys
from collections.abc import Sequence
from typing import Final

from memtools.analysis import LeakVerdict
from memtools.heap import HeapGrowth, WhyAlive
from memtools.heap._why_alive import comparable_holders

_MAX_SUSPECTS: Final = 12
_MAX_LARGE: Final = 2
_MAX_CONTAINERS: Final = 7
_SAME_LEAK_SHARE: Final = 0.5  # of the highest rate: a suspect with this rate may be the same leak
_EXPLAINING_SHARE: Final = 0.05  # of the rate of the fastest type: a slower container does not explain it
_EXPLAINING_BYTES: Final = 0.3  # of the growth of the process, for large objects to explain it
_SESSION: Final = re.compile(r"(Session|Client|Connection|Engine)$")
_FIRST_NAME: Final = re.compile(r"[.\[ ,]")
_OWN: Final = ("memtools.leaks.", "memtools.heap.")


def suspects(grown: Sequence[HeapGrowth]) -> list[HeapGrowth]:
    """Return the growth of which the holders are looked for, in this order.

    Large objects are few and say most; then containers; then types, those of the program before those of libraries.

    Args:
        grown: what `growth_between` returned.
    """
    # Objects of memtools grow with what is measured; a structure of memtools may be what leaks.
    foreign = [one for one in grown if not one.type_name.startswith(_OWN if one.address else "memtools.")]
    large = [one for one in foreign if one.large][:_MAX_LARGE]
    containers = [one for one in foreign if one.address]
    types = [one for one in foreign if not one.address and not one.large]
    types.sort(key=lambda one: (not _is_own_type(one), not _is_session(one)))
    return [*large, *containers[:_MAX_CONTAINERS], *types][:_MAX_SUSPECTS]


def is_informative(answer: WhyAlive, found: Sequence[WhyAlive]) -> bool:
    """Return whether an answer adds to those that were found before.

    Args:
        answer: what holds a suspect.
        found: the answers so far.
    """
    if not answer.paths or not answer.paths[0].holders:
        return False
    path = answer.paths[0]
    if path.is_rooted and path.holders[-1].startswith(("memtools.", "class memtools.")):
        return False  # a registry of memtools, which grows along
    if any(holder.startswith(_OWN) for holder in path.holders):
        return False  # the counts and samples of an investigation
    return not (
        _is_type(answer) and any(_root(answer) == _root(other) and _is_held_by_program(other) for other in found)
    )


def ranked(answers: Sequence[WhyAlive], verdict: LeakVerdict) -> tuple[WhyAlive, ...]:
    """Return the answers that are told, the one that explains most first.

    Several of them may be about one holder: a dict, the lists in it, the buffers in those. It is told once. What a
    library holds beside something that the program holds follows from it: the futures and sockets of open connections.

    Args:
        answers: what was found.
        verdict: on the process.
    """
    told: list[WhyAlive] = []
    for answer in sorted(answers, key=lambda one: _rank(one, answers, verdict)):
        same = next((place for place, other in enumerate(told) if _is_same_holder(answer, other)), None)
        if same is None:
            told.append(answer)
        elif _is_large(told[same]) and answer.growth is not None and answer.growth.address:
            told[same] = answer  # the container with the buffers in it, which has a rate in items
    if not told or not (_is_held_by_program(told[0]) or _is_own_type(told[0].growth)):
        return tuple(told)
    return (told[0], *(one for one in told[1:] if not _is_type(one) or _is_held_by_program(one)))


def explain_in_bytes(answers: Sequence[WhyAlive], verdict: LeakVerdict) -> bool:
    """Return whether objects of Python grow by as many bytes as a leak that the counters took for another kind.

    Args:
        answers: what was found.
        verdict: on the process.
    """
    return any(_explains(answer, verdict) or _bytes_per_s(answer) >= _least(verdict) for answer in answers)


def _rank(answer: WhyAlive, answers: Sequence[WhyAlive], verdict: LeakVerdict) -> tuple[bool | float, ...]:
    # Objects of a type come with a container, several for each item. Containers of the standard library that grow along
    # (the map of a selector) follow from what the program holds.
    fastest = max((_rate(one) for one in answers if not _is_type(one) and not _is_large(one)), default=0.0)
    minimum = max(_SAME_LEAK_SHARE * fastest, _EXPLAINING_SHARE * max(map(_rate, answers), default=0.0))
    is_minor = not _explains(answer, verdict) if _is_large(answer) else _rate(answer) < minimum
    # A timer of the loop is held for what it calls, which says more where it is an object of the program.
    is_foreign = not _is_own_type(answer.growth) if _is_type(answer) else _is_held_by_loop(answer)
    is_held_elsewhere = not _is_held_by_program(answer)
    explains = _explains(answer, verdict)
    return (
        not explains, is_minor, not _is_session(answer.growth), is_foreign, _is_type(answer), is_held_elsewhere,
        -_rate(answer),
    )  # fmt: skip


def _explains(answer: WhyAlive, verdict: LeakVerdict) -> bool:
    growth = answer.growth
    if growth is None or not growth.large or not verdict.is_leak:
        return False
    return growth.bytes_per_second >= _least(verdict)


def _least(verdict: LeakVerdict) -> float:
    return max(_EXPLAINING_BYTES * verdict.bytes_per_s, 1.0)


def _bytes_per_s(answer: WhyAlive) -> float:
    return _rate(answer) * answer.held_bytes / max(answer.alive, 1)


def _is_type(answer: WhyAlive) -> bool:
    return answer.growth is not None and not answer.growth.address and not answer.growth.large


def _is_large(answer: WhyAlive) -> bool:
    return answer.growth is not None and bool(answer.growth.large)


def _is_own_type(growth: HeapGrowth | None) -> bool:
    # Of the program or a library that it installed; types of the program that was started have no module in their name.
    if growth is None:
        return False
    first = growth.type_name.partition(".")[0]
    return first not in sys.stdlib_module_names and not hasattr(builtins, first)


def _is_session(growth: HeapGrowth | None) -> bool:
    # What should have been closed says more than its parts, which grow along.
    return growth is not None and _SESSION.search(growth.type_name) is not None


def _is_held_by_loop(answer: WhyAlive) -> bool:
    return _root(answer).startswith(("asyncio.", "uvloop."))


def _rate(answer: WhyAlive) -> float:
    return answer.growth.per_second if answer.growth is not None else 0.0


def _is_held_by_program(answer: WhyAlive) -> bool:
    path = answer.paths[0]
    names = [_FIRST_NAME.split(holder.removeprefix("class "))[0] for holder in path.holders[-2:]]
    known = [name for name in names if not hasattr(builtins, name)]  # a list or dict may be any module's
    return path.is_rooted and any(name not in sys.stdlib_module_names or name == "__main__" for name in known)


def _root(answer: WhyAlive) -> str:
    return comparable_holders(answer.paths[0])[-1]


def _is_same_holder(one: WhyAlive, other: WhyAlive) -> bool:
    # Equal, or the holder of the one is on the path of the other.
    first, second = comparable_holders(one.paths[0]), comparable_holders(other.paths[0])
    shorter, longer = sorted((first, second), key=len)
    if not one.paths[0].is_rooted or not other.paths[0].is_rooted:
        return first == second
    return longer[-len(shorter) :] == shorter
