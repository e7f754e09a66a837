"""Property tests: random operations on a `BoundedList` and on a simple model."""

from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from memtools.structures import BoundedList

numbers = st.integers(0, 9)
batches = st.lists(numbers, max_size=12)
places = st.integers(-8, 8)
ends = st.none() | places
slices = st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1, 3]))

additions = st.one_of(
    st.tuples(st.just("append"), numbers),
    st.tuples(st.just("extend"), batches),
    st.tuples(st.just("extend by iterator"), batches),
    st.tuples(st.just("extend by itself")),
    st.tuples(st.just("+="), batches),
    st.tuples(st.just("*="), st.integers(-1, 4)),
)
removals = st.one_of(
    st.tuples(st.just("pop")),
    st.tuples(st.just("pop first")),
    st.tuples(st.just("remove"), numbers),
    st.tuples(st.just("reverse")),
    st.tuples(st.just("clear")),
    st.tuples(st.just("del"), places),
    st.tuples(st.just("set"), places, numbers),
)
of_lists = st.one_of(
    st.tuples(st.just("insert"), places, numbers),
    st.tuples(st.just("set slice"), slices, batches),
    st.tuples(st.just("del slice"), slices),
    st.tuples(st.just("sort")),
)


def act(subject: Any, name: str, *given_: Any) -> object:
    """Do one operation on a list or a deque; return its result or the type of its error."""
    try:
        return _act(subject, name, *given_)
    except (IndexError, ValueError) as error:
        return type(error)


def _act(subject: Any, name: str, *given_: Any) -> object:
    match name, given_:
        case "append" | "extend" | "remove" | "insert" | "pop" | "reverse" | "clear" | "sort", _:
            return getattr(subject, name)(*given_)
        case "extend by iterator", [items]:
            subject.extend(iter(items))
        case "extend by itself", _:
            subject.extend(subject)
        case "+=", [items]:
            subject += items
        case "*=", [times]:
            subject *= times
        case "pop first", _:
            return subject.popleft() if isinstance(subject, deque) else subject.pop(0)
        case "del" | "del slice", [place]:
            del subject[place]
        case "set" | "set slice", [place, value]:
            subject[place] = value
        case _:
            raise AssertionError(name)
    return None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 6), batches, st.lists(additions | removals, max_size=40))
def test_exact_window_agrees_with_deque_at_random(maxlen: int, first: list[int], life: list[tuple[Any, ...]]) -> None:
    recent, peer = BoundedList(first, maxlen), deque(first, maxlen)

    for step in life:
        assert act(recent, *step) == act(peer, *step), step
        assert recent == list(peer), step


@settings(max_examples=300, deadline=None)
@given(st.data(), batches, st.lists(additions | removals | of_lists, max_size=40))
def test_keep_agrees_with_a_trimmed_list_at_random(
    data: st.DataObject, first: list[int], life: list[tuple[Any, ...]]
) -> None:
    maxlen = data.draw(st.integers(0, 8))
    keep = data.draw(st.integers(0, maxlen))
    reported: list[int] = []
    recent = BoundedList(first, maxlen, keep=keep, on_evict=reported.extend)
    model, evicted = list(first), []

    for step in [("clear nothing",), *life]:
        if step != ("clear nothing",):
            assert act(recent, *step) == act(model, *step), step
        excess = len(model) - keep if len(model) > maxlen else 0
        evicted += model[:excess]
        del model[:excess]
        assert recent == model, step
        if step[0] == "*=":  # copies that would be evicted were not made
            evicted, reported[:] = [], []
        assert reported == evicted, step


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(additions | removals | of_lists, max_size=40))
def test_size_bytes_agrees_with_the_items_at_random(data: st.DataObject, life: list[tuple[Any, ...]]) -> None:
    max_bytes = data.draw(st.integers(0, 60))
    maxlen = data.draw(st.none() | st.integers(0, 8))
    recent: BoundedList[int] = BoundedList(maxlen=maxlen, max_bytes=max_bytes, sizeof=lambda item: item)
    model: list[int] = []

    for step in life:
        assert act(recent, *step) == act(model, *step), step
        while (maxlen is not None and len(model) > maxlen) or sum(model) > max_bytes:
            del model[0]
        assert recent == model, step
        assert recent.statistics().size_bytes == sum(model), step
        assert recent._sizes == model, step  # each size is at the index of its item


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 9000), st.data())
def test_iterator_and_list_agree_at_random(maxlen: int, length: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, maxlen))
    before = data.draw(st.integers(0, maxlen))
    by_list = BoundedList(range(-before, 0), maxlen, keep=keep)
    by_iterator = BoundedList(range(-before, 0), maxlen, keep=keep)

    by_list.extend(list(range(length)))
    by_iterator.extend(iter(range(length)))

    assert by_list == by_iterator
    assert by_list.statistics() == by_iterator.statistics()
