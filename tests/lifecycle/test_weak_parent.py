"""The way back that keeps nobody alive."""

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


def test_the_parent_is_found_and_not_kept_alive() -> None:
    shop = Shop()
    shelf = shop.add()
    assert shelf.shop is shop

    gc.disable()
    try:
        del shop
        assert shelf.shop is None
    finally:
        gc.enable()


def test_before_it_is_set_after_none_and_after_deletion_there_is_no_parent() -> None:
    shop = Shop()
    shelf = Shelf.__new__(Shelf)
    assert shelf.shop is None

    shelf.shop = shop
    shelf.shop = None
    assert shelf.shop is None

    shelf.shop = shop
    del shelf.shop
    assert shelf.shop is None


def test_each_child_has_its_own() -> None:
    first, second = Shop(), Shop()

    assert (first.add().shop, second.add().shop) == (first, second)


def test_a_class_with_slots_names_the_place() -> None:
    shop, slotted = Shop(), Slotted()
    slotted.shop = shop

    assert slotted.shop is shop


def test_on_the_class_it_is_itself() -> None:
    assert isinstance(Shelf.shop, WeakParent)


@pytest.mark.parametrize("parent", [3, "text", (1, 2)])
def test_what_cannot_be_weakly_referenced_is_refused(parent: object) -> None:
    with pytest.raises(ConfigError, match="shop"):
        Shelf(parent)  # type: ignore[arg-type]  # the point


def test_a_copy_has_the_same_parent_and_a_deep_copy_of_both_the_copied_one() -> None:
    shop = Shop()
    shelf = shop.add()

    copied_shop = copy.deepcopy(shop)

    assert copy.copy(shelf).shop is shop
    assert copy.deepcopy(shelf).shop is shop
    assert copied_shop.shelves[0].shop is copied_shop


def test_a_deep_copy_of_an_orphan_is_an_orphan() -> None:
    shelf = Shelf(Shop())

    assert copy.deepcopy(shelf).shop is None


def test_a_pickled_child_begins_without_a_parent() -> None:
    shop = Shop()
    shelf = shop.add()

    assert Shelf.__dict__["shop"].__get__(shelf, Shelf) is shop
    state = pickle.loads(pickle.dumps(vars(shelf)))
    assert state == {"_shop_reference": None}
