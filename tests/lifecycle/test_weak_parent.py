"""The weak reference to a parent."""

import copy
import gc
import pickle

import pytest

from memtools import ConfigError, WeakParent


class Shop:
    def __init__(self) -> None:
        self.shelves: list[Shelf] = []

    def add(self) -> "Shelf":
        self.shelves.append(Shelf(self))
        return self.shelves[-1]


class Shelf:
    shop = WeakParent[Shop]()

    def __init__(self, shop: Shop | None) -> None:
        self.shop = shop


class Slotted:
    __slots__ = ("_shop_reference",)
    shop = WeakParent[Shop]()


def test_parent_is_returned_and_not_kept_alive() -> None:
    shop = Shop()
    shelf = shop.add()
    assert shelf.shop is shop

    gc.disable()
    try:
        del shop
        assert shelf.shop is None
    finally:
        gc.enable()


def test_parent_is_none_before_setting_and_after_deletion() -> None:
    shop = Shop()
    shelf = Shelf.__new__(Shelf)
    assert shelf.shop is None

    shelf.shop = shop
    shelf.shop = None
    assert shelf.shop is None

    shelf.shop = shop
    del shelf.shop
    assert shelf.shop is None


def test_each_child_has_its_own_parent() -> None:
    first, second = Shop(), Shop()

    assert (first.add().shop, second.add().shop) == (first, second)


def test_class_with_slots_stores_the_reference_in_a_slot() -> None:
    shop, slotted = Shop(), Slotted()
    slotted.shop = shop

    assert slotted.shop is shop


def test_access_on_the_class_returns_the_descriptor() -> None:
    assert isinstance(Shelf.shop, WeakParent)


@pytest.mark.parametrize("parent", [3, "text", (1, 2)])
def test_parent_that_cannot_be_weakly_referenced_is_refused(parent: object) -> None:
    with pytest.raises(ConfigError, match="shop"):
        Shelf(parent)  # type: ignore[arg-type]  # refused at run time, too


def test_deep_copy_with_the_parent_refers_to_the_copied_parent() -> None:
    shop = Shop()
    shelf = shop.add()

    copied_shop = copy.deepcopy(shop)

    assert copy.copy(shelf).shop is shop
    assert copy.deepcopy(shelf).shop is shop
    assert copied_shop.shelves[0].shop is copied_shop


def test_deep_copy_of_a_child_without_parent_has_no_parent() -> None:
    shelf = Shelf(Shop())

    assert copy.deepcopy(shelf).shop is None


def test_pickled_child_has_no_parent() -> None:
    shop = Shop()
    shelf = shop.add()

    assert Shelf.__dict__["shop"].__get__(shelf, Shelf) is shop
    state = pickle.loads(pickle.dumps(vars(shelf)))
    assert state == {"_shop_reference": None}
