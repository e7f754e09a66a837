"""Arguments and statistics of `BoundedList`."""

import sys
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.structures import BoundedList


async def hook(evicted: list[object]) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"maxlen": None}, "maxlen"),
        ({"maxlen": -1}, "maxlen"),
        ({"maxlen": True}, "maxlen"),
        ({"maxlen": 2.0}, "maxlen"),
        ({"maxlen": "5"}, "maxlen"),
        ({"maxlen": 5, "keep": 6}, "keep"),
        ({"maxlen": 5, "keep": -1}, "keep"),
        ({"maxlen": 5, "keep": False}, "keep"),
        ({"maxlen": 5, "keep": 0.75}, "keep"),
        ({"max_bytes": 100, "keep": 5}, "keep"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"max_bytes": True}, "max_bytes"),
        ({"max_bytes": "1 Mb"}, "max_bytes"),
        ({"max_bytes": "50%"}, "max_bytes"),
        ({"maxlen": 5, "sizeof": None}, "sizeof"),
        ({"maxlen": 5, "on_evict": 5}, "on_evict"),
        ({"maxlen": 5, "on_evict": hook}, "on_evict"),
        ({"maxlen": 5, "shrinkable": 1}, "shrinkable"),
    ],
)
def test_invalid_bounds_are_refused_by_name(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        BoundedList([1, 2, 3], **arguments)

    assert refusal.value.name == name


@pytest.mark.parametrize("answer", [True, None, 2.0, "8", -1])
def test_sizeof_that_gives_no_size_is_refused(answer: Any) -> None:
    recent: BoundedList[int] = BoundedList(max_bytes=100, sizeof=lambda item: answer)

    with pytest.raises(ConfigError, match="a function that returns a number of bytes, not") as refusal:
        recent.append(1)

    assert refusal.value.name == "sizeof"
    assert recent == []


def test_refused_bounds_leave_the_list_as_it_was() -> None:
    recent = BoundedList([1, 2, 3], 3, keep=2)

    with pytest.raises(ConfigError):
        recent.__init__([9], 3, keep=4)  # type: ignore[misc]

    assert recent == [1, 2, 3]
    assert (recent.maxlen, recent.keep) == (3, 2)


def test_iterable_is_positional_and_bounds_are_keywords() -> None:
    with pytest.raises(TypeError):
        BoundedList(iterable=[1], maxlen=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        BoundedList([1], 3, 2)  # type: ignore[misc]


def test_keep_is_maxlen_by_default() -> None:
    assert BoundedList((), 5).keep == 5
    assert BoundedList((), 5, keep=0).keep == 0
    assert BoundedList((), max_bytes="1 KiB").keep is None


def test_bounds_are_read_only() -> None:
    recent = BoundedList((), 5, max_bytes="1 KiB")

    assert (recent.maxlen, recent.max_bytes) == (5, 1024)
    for name in ("maxlen", "keep", "max_bytes"):
        with pytest.raises(AttributeError):
            setattr(recent, name, 3)


def test_largest_bound_is_accepted() -> None:
    recent = BoundedList(range(10), sys.maxsize)

    recent.extend(iter(range(5000)))

    assert len(recent) == 5010


def test_statistics_have_bounds_and_evictions() -> None:
    recent = BoundedList(range(12), 10, keep=8)

    figures = recent.statistics()

    assert (figures.length, figures.maxlen, figures.keep, figures.evicted) == (8, 10, 8, 4)
    assert (figures.size_bytes, figures.max_bytes, figures.hook_failures) == (None, None, 0)
