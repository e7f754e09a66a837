import math
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.structures import BoundedList


class Parcel:
    """Weighs what it says; counts how often it was asked."""

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.asked = 0


def weigh(parcel: Parcel) -> int:
    parcel.asked += 1
    return parcel.weight


def weights(parcels: list[Parcel]) -> list[int]:
    return [parcel.weight for parcel in parcels]


def make(*given: int, max_bytes: int = 100, **choices: Any) -> BoundedList[Parcel]:
    return BoundedList(map(Parcel, given), max_bytes=max_bytes, sizeof=weigh, **choices)


def test_oldest_go_until_the_rest_fits() -> None:
    parcels = make(40, 30, 20)

    parcels.append(Parcel(60))

    assert weights(parcels) == [20, 60]
    assert parcels.statistics().size_bytes == 80
    assert parcels.statistics().evicted == 2


def test_item_larger_than_the_bound_cannot_stay() -> None:
    parcels = make(40, 30)

    parcels.append(Parcel(101))

    assert parcels == []
    assert parcels.statistics().evicted == 3


def test_sizes_are_shallow_unless_said_otherwise() -> None:
    texts = BoundedList(["x" * 1000 for _ in range(20)], max_bytes="10 KiB")

    assert len(texts) == 9
    assert texts.max_bytes == 10_240


def test_number_and_bytes_bound_together() -> None:
    parcels = make(1, 1, 1, 1, maxlen=4, keep=2)

    parcels.append(Parcel(1))
    assert weights(parcels) == [1, 1]

    parcels.append(Parcel(99))
    assert weights(parcels) == [1, 99]
    parcels.append(Parcel(100))
    assert weights(parcels) == [100]


def test_hook_is_told_what_went_by_bytes() -> None:
    told: list[list[int]] = []
    parcels = make(40, 30, 20, on_evict=lambda gone: told.append(weights(gone)))

    parcels.append(Parcel(60))
    parcels.extend(map(Parcel, [30, 80, 90]))

    assert told[0] == [40, 30]
    assert [weight for gone in told for weight in gone] == [40, 30, 20, 60, 30, 80]
    assert weights(parcels) == [90]


def test_size_is_asked_once_and_remembered() -> None:
    parcels = make(10, 20, 30)
    first = list(parcels)

    for parcel in first:
        parcel.weight = 99
    parcels.append(Parcel(5))
    parcels.sort(key=lambda parcel: parcel.asked)
    parcels.reverse()
    parcels.copy()

    assert [parcel.asked for parcel in first] == [1, 1, 1]
    assert parcels.statistics().size_bytes == 65


@pytest.mark.parametrize(
    ("act", "left"),
    [
        (lambda parcels: parcels.pop(), [10, 20, 30]),
        (lambda parcels: parcels.pop(0), [20, 30, 40]),
        (lambda parcels: parcels.pop(-2), [10, 20, 40]),
        (lambda parcels: parcels.remove(parcels[1]), [10, 30, 40]),
        (lambda parcels: parcels.clear(), []),
        (lambda parcels: parcels.reverse(), [40, 30, 20, 10]),
        (lambda parcels: parcels.sort(key=lambda parcel: -parcel.weight), [40, 30, 20, 10]),
        (lambda parcels: parcels.__delitem__(slice(None, None, 2)), [20, 40]),
        (lambda parcels: parcels.__delitem__(-1), [10, 20, 30]),
        (lambda parcels: parcels.__setitem__(0, Parcel(1)), [1, 20, 30, 40]),
        (lambda parcels: parcels.__setitem__(-1, Parcel(50)), [20, 30, 50]),
        (lambda parcels: parcels.__setitem__(slice(1, 3), map(Parcel, (1, 2, 3))), [10, 1, 2, 3, 40]),
        (lambda parcels: parcels.__setitem__(slice(None, None, 2), (Parcel(1), Parcel(2))), [1, 20, 2, 40]),
        (lambda parcels: parcels.insert(1, Parcel(5)), [5, 20, 30, 40]),
        (lambda parcels: parcels.insert(0, Parcel(5)), [10, 20, 30, 40]),
        (lambda parcels: parcels.insert(4, Parcel(5)), [20, 30, 40, 5]),
        (lambda parcels: parcels.extend(map(Parcel, (1, 2))), [20, 30, 40, 1, 2]),
        (lambda parcels: parcels.extend(parcels), [10, 20, 30, 40]),
        (lambda parcels: parcels.extend(reversed(parcels)), [40, 30, 20, 10]),
        (lambda parcels: parcels.__iadd__([Parcel(70)]), [70]),
        (lambda parcels: parcels.__imul__(3), [10, 20, 30, 40]),
        (lambda parcels: parcels.__imul__(10**18), [10, 20, 30, 40]),
        (lambda parcels: parcels.__imul__(0), []),
    ],
)
def test_bytes_stay_right_through_every_mutator(act: Any, left: list[int]) -> None:
    parcels = make(10, 20, 30, 40)

    act(parcels)

    assert weights(parcels) == left
    assert parcels.statistics().size_bytes == sum(weights(parcels)) <= 100
    parcels.append(Parcel(100))  # the sizes stand in the order of the items: exactly the new one is left
    assert weights(parcels) == [100]


def test_failed_changes_change_nothing() -> None:
    parcels = make(10, 20)

    for fail, kind in (
        (lambda: parcels.pop(5), IndexError),
        (lambda: parcels.remove(Parcel(1)), ValueError),
        (lambda: parcels.__setitem__(5, Parcel(1)), IndexError),
        (lambda: parcels.__setitem__(slice(None, None, 2), [Parcel(1), Parcel(1)]), ValueError),
        (lambda: parcels.__delitem__(2), IndexError),
        (lambda: parcels.sort(), TypeError),
    ):
        with pytest.raises(kind):
            fail()

    assert sorted(weights(parcels)) == [10, 20]
    assert parcels.statistics().size_bytes == 30


def test_size_that_is_none_is_refused_before_the_item_enters() -> None:
    answers = iter([5, -1, "many"])
    numbers: BoundedList[int] = BoundedList([1], max_bytes=10, sizeof=lambda item: next(answers))

    for refused in ("-1", "'many'"):
        with pytest.raises(ConfigError, match=refused):
            numbers.append(2)

    assert numbers == [1]
    assert numbers.statistics().size_bytes == 5


def test_sizeof_that_fails_in_the_middle_leaves_the_items_before() -> None:
    def fussy(item: int) -> int:
        return 10 // item

    numbers: BoundedList[int] = BoundedList(max_bytes=100, sizeof=fussy)

    with pytest.raises(ZeroDivisionError):
        numbers.extend([5, 2, 0, 1])

    assert numbers == [5, 2]
    assert numbers.statistics().size_bytes == 7


def test_generator_never_has_more_than_the_bounds_and_one_item_alive() -> None:
    alive = most = 0

    class Heavy:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    heavy: BoundedList[Heavy] = BoundedList(max_bytes=1000, sizeof=lambda item: 100)

    heavy.extend(Heavy() for _ in range(1000))

    assert len(heavy) == 10
    assert most <= 2 * 10 + 2
    heavy.clear()


def test_bypassing_calls_are_weighed_at_the_next_change_or_check() -> None:
    parcels = make(10, 20)

    list.append(parcels, Parcel(90))
    assert parcels.check() == 2
    assert weights(parcels) == [90]

    list.append(parcels, Parcel(5))
    parcels.append(Parcel(6))
    assert weights(parcels) == [5, 6]
    assert parcels.statistics().size_bytes == 11


def test_list_filled_behind_its_back_can_be_extended_by_itself() -> None:
    parcels = make(60)
    list.extend(parcels, [Parcel(70), Parcel(80)])

    parcels.extend(parcels)

    assert weights(parcels) == [80]


def test_overflow_by_number_in_the_middle_of_an_iterator_leaves_keep_at_its_end() -> None:
    parcels = make(maxlen=10, keep=3)

    parcels.extend(map(Parcel, range(15)))

    assert weights(parcels) == [12, 13, 14]


def test_check_weighs_items_that_have_grown() -> None:
    parcels = make(10, 20)
    parcels[0].weight = 90

    assert parcels.check() == 1
    assert weights(parcels) == [20]


def test_object_in_two_places_counts_twice() -> None:
    parcel = Parcel(30)

    parcels: BoundedList[Parcel] = BoundedList([parcel, parcel], max_bytes=100, sizeof=weigh)
    parcels.sort(key=id)

    assert parcels.statistics().size_bytes == 60


def test_finaliser_that_adds_in_the_middle_of_a_removal_leaves_the_sizes_in_step() -> None:
    parcels: BoundedList[Parcel] = BoundedList(max_bytes=100, sizeof=weigh)

    class Echo(Parcel):
        def __del__(self) -> None:
            if self.weight == 20:
                parcels.append(Parcel(3))

    changes: list[Any] = [
        lambda: parcels.clear(),
        lambda: parcels.__delitem__(0),
        lambda: parcels.__setitem__(0, Parcel(1)),
        lambda: parcels.__setitem__(-1, Parcel(1)),
        lambda: parcels.__setitem__(slice(None), []),
        lambda: parcels.__imul__(0),
        lambda: parcels.append(Parcel(99)),
        lambda: parcels.__init__(max_bytes=100, sizeof=weigh),  # type: ignore[misc]
    ]
    for change in changes:
        parcels.clear()
        parcels.append(Echo(20))
        change()
        assert parcels.statistics().size_bytes == sum(weights(parcels))
        assert 3 in weights(parcels)


def test_key_that_changes_the_list_while_it_sorts_leaves_the_sizes_in_step() -> None:
    parcels = make(10, 20, 30)

    def meddle(parcel: Parcel) -> int:
        parcels.append(Parcel(7))
        return parcel.weight

    with pytest.raises(ValueError, match="modified during sort"):
        parcels.sort(key=meddle)

    assert parcels.statistics().size_bytes == sum(weights(parcels))


def test_subclass_bounded_by_bytes_keeps_its_class_and_overrides() -> None:
    class Postbag(BoundedList[Parcel]):
        __slots__ = ("posted",)

        def __init__(self) -> None:
            self.posted = 0
            super().__init__(max_bytes=100, sizeof=weigh)

        def append(self, item: Parcel, /) -> None:
            super().append(item)
            self.posted += 1

    first, second = Postbag(), Postbag()
    for weight in (50, 40, 30):
        first.append(Parcel(weight))

    assert isinstance(first, Postbag)
    assert type(first) is type(second)
    assert type(first).__name__ == "Postbag"
    assert weights(first) == [40, 30]
    assert first.posted == 3
    assert first.statistics().size_bytes == 70


def test_second_construction_takes_up_and_drops_the_bound_by_bytes() -> None:
    parcels: BoundedList[Parcel] = BoundedList(maxlen=3)
    plain = type(parcels)

    parcels.__init__([Parcel(60), Parcel(50)], max_bytes=100, sizeof=weigh)  # type: ignore[misc]
    assert weights(parcels) == [50]

    parcels.__init__([Parcel(60), Parcel(50)], 3)  # type: ignore[misc]
    assert weights(parcels) == [60, 50]
    assert type(parcels) is plain


def test_bound_of_zero_bytes_holds_only_what_weighs_nothing() -> None:
    parcels = make(0, 1, 0, 0, max_bytes=0)

    assert weights(parcels) == [0, 0]
    parcels *= 2
    assert weights(parcels) == [0] * 4
    assert parcels.shrink(0, math.inf) == 0  # type: ignore[arg-type]
