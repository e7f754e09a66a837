"""CPython's own suites for lists, run with `BoundedList` in place of `list`."""

import unittest
from collections.abc import Iterable
from typing import Any

import pytest

from memtools.structures import BoundedList

pytest.importorskip("test.list_tests", reason="this Python comes without its own test suite")

from test import list_tests, seq_tests, test_list

LARGE = 10_000_000


class ItemBounded(BoundedList[Any]):
    """Bounded by items, with the arguments of `list`."""

    def __init__(self, iterable: Iterable[Any] = (), /) -> None:
        super().__init__(iterable, LARGE)


class ByteBounded(BoundedList[Any]):
    """Bounded by bytes, takes what `list` takes."""

    def __init__(self, iterable: Iterable[Any] = (), /) -> None:
        super().__init__(iterable, LARGE, keep=LARGE // 2, max_bytes="8 GiB")


# The suite for `list` contains the suites for any sequence and for any list: one Python is enough for these alone.
@pytest.mark.once
class TestSequenceItemBounded(seq_tests.CommonTest):  # type: ignore[misc]  # typeshed knows no `test`
    type2test = ItemBounded


@pytest.mark.once
class TestSequenceByteBounded(seq_tests.CommonTest):  # type: ignore[misc]
    type2test = ByteBounded


@pytest.mark.once
class TestListCommonItemBounded(list_tests.CommonTest):  # type: ignore[misc]
    type2test = ItemBounded


@pytest.mark.once
class TestListCommonByteBounded(list_tests.CommonTest):  # type: ignore[misc]
    type2test = ByteBounded


class TestListItemBounded(test_list.ListTest):  # type: ignore[misc]
    type2test = ItemBounded


class TestListByteBounded(test_list.ListTest):  # type: ignore[misc]
    type2test = ByteBounded


class TestListByName(test_list.ListTest):  # type: ignore[misc]
    """As above, and the name `list` in the suite is `BoundedList` as well."""

    type2test = ItemBounded

    @pytest.fixture(autouse=True)
    def ours_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (seq_tests, list_tests, test_list):
            monkeypatch.setattr(module, "list", ItemBounded, raising=False)

    @unittest.skip(
        "`list` lets a subclass with a `__new__` of its own take any keyword; BoundedList names an unknown one"
    )
    def test_keywords_in_subclass(self) -> None: ...

    @unittest.skip("the fields beside those of a list take bytes, too")
    def test_preallocation(self) -> None: ...


def test_suites_are_not_empty() -> None:
    suites = (TestSequenceItemBounded, TestListCommonItemBounded, TestListItemBounded)

    counts = [unittest.defaultTestLoader.loadTestsFromTestCase(suite).countTestCases() for suite in suites]

    assert counts == sorted(counts)
    assert counts[0] > 15
