"""Chains of equal links, which `why_alive` folds and follows to what holds them."""

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memtools.heap import _chains, why_alive

LINKS = 700


class Holder:
    """What holds the far end of each chain."""

    end: Any = None


holder = Holder()


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    holder.__dict__.clear()


class Node:
    def __init__(self, following: Any) -> None:
        self.following = following


class Slotted:
    __slots__ = ("following", "held", "previous")

    def __init__(self) -> None:
        self.following = self.previous = self.held = None


def instances(target: object) -> object:
    node = Node(target)
    for _ in range(LINKS):
        node = Node(node)
    return node


def tuples(target: object) -> object:
    link: Any = (target, 0)
    for number in range(LINKS):
        link = (link, number)
    return link


def dicts(target: object) -> object:
    link: Any = {"child": target}
    for _ in range(LINKS):
        link = {"child": link}
    return link


def dicts_of_lists(target: object) -> object:
    link: Any = [target]
    for _ in range(LINKS):
        link = [{"child": link}]
    return link


def closures(target: object) -> object:
    def wrap(wrapped: object) -> Callable[[], object]:
        def wrapper() -> object:
            return wrapped

        return wrapper

    link = wrap(target)
    for _ in range(LINKS):
        link = wrap(link)
    return link


def exceptions(target: object) -> object:
    error = ValueError(target)
    for _ in range(LINKS):
        later = ValueError()
        later.__context__ = error
        error = later
    return error


def linked_both_ways(target: object) -> object:
    link = Slotted()
    link.held = target
    for _ in range(LINKS):
        later = Slotted()
        later.previous, link.following = link, later
        link = later
    return link


@pytest.mark.parametrize(
    ("make", "expected", "hint"),
    [
        (instances, "Node.following, 701 times", "chain"),
        (tuples, "tuple[0], 701 times", "chain"),
        (dicts, "dict[<str, 5 characters>], 701 times", "chain"),
        (dicts_of_lists, "(list[0] <- dict[<str, 5 characters>]), 700 times", "chain"),
        (closures, "variable wrapped, 701 times", "chain"),
        (exceptions, "ValueError.__context__, 700 times", "exception"),
        (linked_both_ways, "Slotted.previous, 700 times", "chain"),
    ],
)
def test_chain_is_folded_and_reaches_its_root(make: Callable[[object], object], expected: str, hint: str) -> None:
    target = [1]
    holder.end = make(target)

    (path,) = why_alive(target, timeout=60).paths

    assert expected in str(path)
    assert str(path).endswith(f" <- {__name__}.Holder.end <- {__name__}.holder")
    assert path.is_rooted
    assert hint in path.hint


def test_short_chain_is_folded_from_three_links_on() -> None:
    target = [1]
    holder.end = Node(Node(Node(target)))
    assert f"{__name__}.Node.following, 3 times" in str(why_alive(target))

    holder.end = Node(Node(target))
    assert why_alive(target).paths[0].holders[:2] == (f"{__name__}.Node.following",) * 2


class Target:
    """An object that a test can refer to without keeping it."""


async def test_chain_in_a_context_variable_ends_at_its_name() -> None:
    target = weakref.ref(kept := Target())
    trail: contextvars.ContextVar[object] = contextvars.ContextVar("trail")
    context = contextvars.copy_context()
    context.run(trail.set, tuples(kept))
    del kept
    never = asyncio.Event()
    task = asyncio.get_running_loop().create_task(never.wait(), name="stuck", context=context)
    del context
    await asyncio.sleep(0)
    try:
        answer = why_alive(target(), timeout=60)
    finally:
        task.cancel()

    assert "tuple[0], 701 times <- ContextVar 'trail'" in str(answer)
    assert answer.paths[0].is_rooted


def test_value_of_the_current_context_is_rooted() -> None:
    trail: contextvars.ContextVar[object] = contextvars.ContextVar("trail")
    target = weakref.ref(kept := Target())
    trail.set(kept)
    del kept
    try:
        (path,) = why_alive(target()).paths
    finally:
        trail.set(None)

    assert path.holders == ("ContextVar 'trail'",)
    assert path.is_rooted
    assert "reset the variable" in path.hint


def test_ring_is_left_where_it_is_held() -> None:
    target = [1]
    first = link = Slotted()
    first.held = target
    for _ in range(LINKS):
        later = Slotted()
        link.following, link = later, later
    link.following = first
    middle = first
    for _ in range(LINKS // 2):
        middle = middle.following
    holder.end = middle
    del first, link, later, middle

    (path,) = why_alive(target, timeout=60).paths

    assert f"{__name__}.Slotted.following, 351 times <- {__name__}.Holder.end" in str(path)


def test_samples_of_one_chain_are_one_path() -> None:
    holder.end = instances(None)

    answer = why_alive(Node, timeout=60)

    assert answer.alive == LINKS + 1
    # The youngest is held by the holder itself, the others by the link behind them.
    assert [path.count for path in answer.paths] == [7, 1]
    assert f"{__name__}.Node.following, 7 times <- {__name__}.Holder.end" in str(answer.paths[0])


def test_too_long_chain_says_that_its_root_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chains, "MAX_LINKS", LINKS // 2)
    monkeypatch.setattr(_chains, "_OBJECTS_PER_SLICE", 10)
    target = [1]
    holder.end = instances(target)

    answer = why_alive(target, timeout=60)

    assert not answer.is_complete
    assert not answer.paths[0].is_rooted
    assert "a chain is too long" in str(answer)


def test_followed_chain_is_not_held_afterwards() -> None:
    target = [1]
    holder.end = instances(target)
    link = weakref.ref(holder.end)
    why_alive(target, timeout=60)

    before = gc.isenabled()
    gc.disable()
    try:
        holder.end = None
        assert link() is None
    finally:
        if before:
            gc.enable()


def test_chains_run_no_code_of_their_links() -> None:
    class Trap:
        def __init__(self, following: object) -> None:
            object.__setattr__(self, "following", following)

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        def __hash__(self) -> int:
            raise AssertionError("hashed")

    target = [1]
    link: object = target
    for _ in range(LINKS):
        link = Trap(link)
    holder.end = link
    del link

    assert "Trap.following, 700 times" in str(why_alive(target, timeout=60))
