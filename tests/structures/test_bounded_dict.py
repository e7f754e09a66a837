"""What a bounded dict promises: its bounds after every call, what goes first, and that it is a dict in all else."""

import copy
import gc
import json
import pickle
import sys
import weakref
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools import BoundedDict, ConfigError


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# Every way in which entries are kept; each has room for three.
VARIANTS: dict[str, dict[str, Any]] = {
    "oldest": {"maxlen": 3},
    "hook": {"maxlen": 3, "on_evict": lambda key, value: None},
    "least recent": {"maxlen": 3, "drop": "least_recent"},
    "least recent with hook": {"maxlen": 3, "drop": "least_recent", "on_evict": lambda key, value: None},
    "ttl": {"maxlen": 3, "ttl": 60},
    "bytes": {"maxlen": 3, "max_bytes": "1 MiB"},
    "bytes alone": {"max_bytes": 3 * (sys.getsizeof(1) + 100), "sizeof": lambda value: 100},
    "all": {"maxlen": 3, "max_bytes": "1 MiB", "ttl": 60, "drop": "least_recent"},
}


@pytest.fixture(params=VARIANTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


class TestBound:
    """The bound holds after every call that adds."""

    def test_assignment_evicts_the_oldest(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[int, int] = BoundedDict(**options)

        for number in range(1, 6):
            kept[number] = number

        assert list(kept.items()) == [(3, 3), (4, 4), (5, 5)]
        assert kept.statistics().evicted == 2

    @pytest.mark.parametrize(
        "entries",
        [dict.fromkeys(range(1, 6)), [(n, None) for n in range(1, 6)], OrderedDict.fromkeys(range(1, 6))],
        ids=["dict", "pairs", "mapping"],
    )
    def test_update_keeps_the_newest(self, options: dict[str, Any], entries: Any) -> None:
        kept: BoundedDict[int, None] = BoundedDict(**options)

        kept.update(entries)

        assert list(kept) == [3, 4, 5]

    def test_update_from_a_long_iterator_keeps_the_newest(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[int, int] = BoundedDict(**options)

        kept.update((number, number) for number in range(5_000))

        assert list(kept) == [4997, 4998, 4999]

    def test_update_in_place_and_by_name_hold_the_bound(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[Any, int] = BoundedDict({1: 1, 2: 2}, **options)
        same = kept

        kept |= {3: 3, 4: 4}
        assert kept is same
        assert list(kept) == [2, 3, 4]

        kept.update({}, name=5)
        assert kept["name"] == 5
        assert len(kept) <= 3

    def test_setdefault_evicts_only_where_it_adds(self, options: dict[str, Any]) -> None:
        kept = BoundedDict({1: 1, 2: 2, 3: 3}, **options)

        assert kept.setdefault(1, 9) == 1
        assert len(kept) == 3
        assert kept.setdefault(4, 4) == 4
        assert len(kept) == 3

    def test_replacing_evicts_nothing(self, options: dict[str, Any]) -> None:
        kept = BoundedDict({1: 1, 2: 2, 3: 3}, **options)

        for number in (1, 2, 3, 1):
            kept[number] = number + 1

        assert list(kept.items()) == [(1, 2), (2, 3), (3, 4)]

    def test_maxlen_of_zero_keeps_nothing(self) -> None:
        for drop in ("oldest", "least_recent"):
            kept: BoundedDict[int, int] = BoundedDict(maxlen=0, drop=drop)
            kept[1] = 1
            kept.update({2: 2})
            assert len(kept) == 0

    def test_overflow_leaves_keep_entries_once_a_call(self) -> None:
        for options in ({}, {"drop": "least_recent"}, {"ttl": 60}):
            kept: BoundedDict[int, int] = BoundedDict(maxlen=10, keep=4, **options)
            kept.update((number, number) for number in range(10))
            assert len(kept) == 10

            kept[10] = 10
            assert list(kept) == [7, 8, 9, 10]

            kept.update((number, number) for number in range(20, 5_000))
            assert list(kept) == [4996, 4997, 4998, 4999]

    def test_entries_before_a_failure_stay_within_the_bound(self, options: dict[str, Any]) -> None:
        def failing() -> Any:
            yield from ((number, number) for number in range(1, 6))
            raise LookupError("no more")

        kept: BoundedDict[int, int] = BoundedDict(**options)
        with pytest.raises(LookupError):
            kept.update(failing())

        assert list(kept) == [3, 4, 5]

    def test_bad_pairs_get_the_error_of_dict(self, options: dict[str, Any]) -> None:
        kept: BoundedDict[Any, Any] = BoundedDict(**options)

        with pytest.raises(ValueError, match="length 3; 2 is required"):
            kept.update([(1, 2), (1, 2, 3)])
        with pytest.raises(TypeError):
            kept.update(7)

        assert kept == {1: 2}

    def test_copies_keep_class_bounds_and_entries(self, options: dict[str, Any]) -> None:
        class Orders(BoundedDict[int, Any]):
            pass

        kept = Orders({1: [1], 2: [2], 3: [3]}, **options)
        kept.note = "mine"

        for copied in (kept.copy(), copy.copy(kept), copy.deepcopy(kept)):
            assert isinstance(copied, Orders)
            assert copied == kept
            assert copied.note == "mine"
            copied[4] = [4]
            assert list(copied) == [2, 3, 4]
        assert copy.copy(kept)[1] is kept[1]
        assert copy.deepcopy(kept)[1] is not kept[1]
        assert list(kept) == [1, 2, 3]

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("drop", ["oldest", "least_recent"])
    def test_pickle_keeps_bounds_without_the_hook(self, protocol: int, drop: Any) -> None:
        kept = BoundedDict({1: 1, 2: 2}, maxlen=2, drop=drop, ttl=60, on_evict=lambda key, value: None)

        loaded = pickle.loads(pickle.dumps(kept, protocol))
        loaded[3] = 3

        assert list(loaded) == [2, 3]
        assert (loaded.maxlen, loaded.drop, loaded.ttl) == (2, drop, 60)

    def test_deepcopy_of_a_dict_that_holds_itself(self) -> None:
        kept: BoundedDict[int, Any] = BoundedDict(maxlen=3)
        kept[1] = kept

        copied = copy.deepcopy(kept)

        assert copied[1] is copied

    def test_evicted_values_are_released(self, options: dict[str, Any]) -> None:
        class Value:
            pass

        kept: BoundedDict[int, Value] = BoundedDict(**options)
        values = [weakref.ref(kept.setdefault(number, Value())) for number in range(1, 6)]
        gc.collect()

        assert [value() is None for value in values] == [True, True, False, False, False]


class TestConstructor:
    """What the arguments mean, and which are refused."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"maxlen": -1}, "maxlen"),
            ({"maxlen": True}, "maxlen"),
            ({"maxlen": None}, "maxlen"),
            ({"maxlen": 3, "keep": 4}, "keep"),
            ({"max_bytes": "1 XB"}, "max_bytes"),
            ({"maxlen": 3, "ttl": 0}, "ttl"),
            ({"maxlen": 3, "ttl": "soon"}, "ttl"),
            ({"maxlen": 3, "drop": "newest"}, "drop"),
            ({"maxlen": 3, "sizeof": 3}, "sizeof"),
            ({"maxlen": 3, "on_evict": 3}, "on_evict"),
            ({"maxlen": 3, "shrinkable": 1}, "shrinkable"),
            ({"maxlen": 3, "clock": 1}, "clock"),
        ],
    )
    def test_wrong_argument_is_named(self, arguments: dict[str, Any], message: str) -> None:
        kept = BoundedDict({1: 1}, maxlen=3)

        with pytest.raises(ConfigError, match=message):
            BoundedDict({2: 2}, **arguments)
        with pytest.raises(ConfigError, match=message):
            kept.__init__({2: 2}, **arguments)  # type: ignore[misc]

        assert kept == {1: 1}
        assert kept.maxlen == 3

    def test_coroutine_function_is_no_hook(self) -> None:
        async def later(key: int, value: int) -> None: ...

        with pytest.raises(ConfigError, match="a coroutine would not be awaited"):
            BoundedDict[int, int](maxlen=3, on_evict=later)

    def test_names_of_entries_are_no_arguments(self) -> None:
        with pytest.raises(TypeError, match="'a'"):
            BoundedDict(a=1)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="use 'maxlen'"):
            BoundedDict(maxsize=1)  # type: ignore[call-overload]

    def test_no_bound_is_the_number_of_entries(self) -> None:
        assert BoundedDict().maxlen == 1_000
        assert BoundedDict({number: number for number in range(5_000)}).maxlen == 5_000
        assert len(BoundedDict.fromkeys(range(5_000))) == 5_000
        assert BoundedDict(BoundedDict(maxlen=7)).maxlen == 7

    def test_second_call_keeps_entries_within_new_bounds(self) -> None:
        kept = BoundedDict({1: 1, 2: 2, 3: 3}, maxlen=3)

        kept.__init__({4: 4}, 2, drop="least_recent")  # type: ignore[misc]

        assert list(kept) == [3, 4]


class TestLeastRecent:
    """With `drop="least_recent"`, what was set or read last stays."""

    @pytest.mark.parametrize("options", [{}, {"ttl": 60}, {"max_bytes": "1 MiB"}], ids=str)
    def test_reading_by_key_makes_recent(self, options: dict[str, Any]) -> None:
        kept = BoundedDict({"a": 1, "b": 2, "c": 3, "d": 4}, maxlen=4, drop="least_recent", **options)

        assert kept["a"] == 1
        assert kept.get("b") == 2
        assert kept.setdefault("c") == 3
        kept["e"] = 5
        assert set(kept) == {"a", "b", "c", "e"}

        kept["a"] = 9
        assert "b" in kept  # no use
        kept["f"] = 6
        assert set(kept) == {"a", "c", "e", "f"}

    def test_reading_moves_nothing_in_the_dict(self) -> None:
        kept = BoundedDict({1: 1, 2: 2, 3: 3}, maxlen=3, drop="least_recent")

        assert [kept[key] for key in kept] == [1, 2, 3]
        assert [kept[key] for key in reversed(kept)] == [3, 2, 1]
        assert list(kept) == [1, 2, 3]

    def test_missing_is_called_as_by_dict(self) -> None:
        class Zero(BoundedDict[str, int]):
            def __missing__(self, key: str) -> int:
                return 0

        for options in VARIANTS.values():
            zero = Zero(**options)
            assert zero["nothing"] == 0
            assert len(zero) == 0
            assert zero.get("nothing") is None

    @given(st.lists(st.tuples(st.sampled_from("sgdpi"), st.integers(0, 8)), max_size=60))
    def test_differential_run_against_an_ordered_dict(self, steps: list[tuple[str, int]]) -> None:
        kept: BoundedDict[int, int] = BoundedDict(maxlen=4, drop="least_recent", shrinkable=False)
        expected: OrderedDict[int, int] = OrderedDict()  # in the order of use

        for step, key in steps:
            if step == "s":
                kept[key] = expected[key] = key
                expected.move_to_end(key)
                if len(expected) > 4:
                    expected.popitem(last=False)
            elif step == "g" and kept.get(key) is not None:
                expected.move_to_end(key)
            elif step == "d" and key in expected:
                del kept[key], expected[key]
            elif step == "p":
                assert kept.pop(key, None) == expected.pop(key, None)
            elif step == "i" and kept:
                del expected[kept.popitem()[0]]
            assert kept == dict(expected)
            assert list(kept._order) == list(expected)


@given(st.lists(st.tuples(st.sampled_from("sudpic"), st.integers(0, 300)), max_size=120))
def test_differential_run_of_the_oldest(steps: list[tuple[str, int]]) -> None:
    kept: BoundedDict[int, int] = BoundedDict(maxlen=40, shrinkable=False)
    expected: dict[int, int] = {}

    for step, key in steps:
        if step == "s":
            kept[key] = expected[key] = key
        elif step == "u":
            entries = dict.fromkeys(range(key, key + 30), key)
            kept.update(entries)
            expected.update(entries)
        elif step == "d" and key in expected:
            del kept[key], expected[key]
        elif step == "p":
            assert kept.pop(key, None) == expected.pop(key, None)
        elif step == "i" and kept:
            assert kept.popitem() == expected.popitem()
        elif step == "c" and key < 20:
            kept.clear()
            expected.clear()
        while len(expected) > 40:
            del expected[next(iter(expected))]
        assert list(kept.items()) == list(expected.items())


class TestExpiry:
    """With a `ttl`, an expired entry is not found, and the next write drops it."""

    def test_expired_entry_is_not_found(self) -> None:
        clock = Clock()
        kept = BoundedDict({"a": 1}, maxlen=3, ttl=10, clock=clock)
        clock.now_s = 9.9
        assert kept["a"] == 1

        clock.now_s = 10
        assert "a" not in kept
        assert kept.get("a", "none") == "none"
        with pytest.raises(KeyError, match="a"):
            kept["a"]
        assert list(kept) == ["a"]  # until the next write

        assert kept.setdefault("a", 2) == 2
        assert kept["a"] == 2

    def test_setdefault_reports_expired_entries_of_others(self) -> None:
        clock, gone = Clock(), []
        kept = BoundedDict({"a": 1}, maxlen=3, ttl=10, clock=clock, on_evict=lambda *entry: gone.append(entry))
        clock.now_s = 12

        assert kept.setdefault("b", 2) == 2
        assert gone == [("a", 1)]

    def test_next_write_drops_expired_before_others(self) -> None:
        clock, gone = Clock(), []
        kept = BoundedDict({"a": 1, "b": 2}, maxlen=3, ttl=10, clock=clock, on_evict=lambda *entry: gone.append(entry))
        clock.now_s = 5
        kept["a"] = 3  # a new start for it, at its old place
        clock.now_s = 12

        kept["c"] = 4
        kept["d"] = 5

        assert kept == {"a": 3, "c": 4, "d": 5}
        assert gone == [("b", 2)]
        assert kept.statistics().expired == 1

    @pytest.mark.parametrize("write", ["pop", "popitem", "del", "check", "shrink"])
    def test_every_change_drops_what_has_expired(self, write: str) -> None:
        clock = Clock()
        kept = BoundedDict({"a": 1, "b": 2}, maxlen=9, ttl=10, clock=clock)
        clock.now_s = 5
        kept["c"] = 3
        kept["d"] = 4
        clock.now_s = 11

        if write == "pop":
            assert kept.pop("a", None) is None
            assert kept.pop("c") == 3
        elif write == "popitem":
            assert kept.popitem() == ("d", 4)
        elif write == "del":
            with pytest.raises(KeyError):
                del kept["a"]
        elif write == "check":
            assert kept.check() == 2
        else:
            kept.shrink(1, 0)  # type: ignore[arg-type]
        assert not {"a", "b"} & set(kept.keys())

    def test_copies_leave_expired_entries_out(self) -> None:
        clock = Clock()
        kept = BoundedDict({"a": 1}, maxlen=9, ttl=10, clock=clock)
        clock.now_s = 8
        kept["b"] = 2
        clock.now_s = 12

        copied = kept.copy()
        clock.now_s = 20

        assert dict(copied) == {"b": 2}
        assert copied["b"] == 2  # its time began anew
        assert "b" not in kept


class TestBytes:
    """With `max_bytes`, keys and values have so many bytes at most."""

    def test_oldest_go_until_the_bytes_fit(self) -> None:
        key_bytes = sys.getsizeof("a")
        kept: BoundedDict[str, bytes] = BoundedDict(max_bytes=2_000, sizeof=len)

        kept["a"] = b"x" * 600
        kept["b"] = b"x" * 600
        kept["c"] = b"x" * 1_200

        assert list(kept) == ["b", "c"] if 2 * key_bytes <= 200 else ["c"]
        assert kept.statistics().size_bytes == 1_800 + 2 * key_bytes

    def test_keys_count(self) -> None:
        seen: BoundedDict[str, bool] = BoundedDict(max_bytes="100 KiB")

        for number in range(1_000):
            seen[str(number) * 300] = True

        assert sum(map(sys.getsizeof, seen)) <= 100 * 1024
        assert len(seen) < 400

    @pytest.mark.parametrize("drop", ["oldest", "least_recent"])
    def test_entry_that_is_too_large_evicts_no_other(self, drop: Any) -> None:
        gone: list[str] = []
        kept = BoundedDict({"a": b"1"}, max_bytes=1_000, drop=drop, on_evict=lambda key, value: gone.append(key))

        kept["b"] = bytes(2_000)
        assert kept == {"a": b"1"}

        kept["a"] = bytes(2_000)
        assert kept == {}
        assert gone == ["b", "a"]
        assert kept.statistics().size_bytes == 0

    @pytest.mark.parametrize("answer", [None, True, 1.5, -1], ids=repr)
    def test_wrong_size_adds_nothing(self, answer: Any) -> None:
        kept: BoundedDict[int, int] = BoundedDict(max_bytes=1_000, sizeof=lambda value: answer)

        with pytest.raises(ConfigError, match="sizeof"):
            kept[1] = 1
        with pytest.raises(ConfigError, match="sizeof"):
            kept.update({1: 1})

        assert kept == {}

    @given(st.lists(st.tuples(st.sampled_from("sudpigc"), st.integers(0, 9), st.integers(0, 500)), max_size=60))
    def test_remembered_bytes_are_those_of_the_entries(self, steps: list[tuple[str, int, int]]) -> None:
        kept: BoundedDict[int, int] = BoundedDict(
            max_bytes=1_500, maxlen=6, keep=5, drop="least_recent", sizeof=int, shrinkable=False
        )

        for step, key, size in steps:
            if step == "s":
                kept[key] = size
            elif step == "u":
                kept.update(dict.fromkeys(range(key), size))
            elif step == "d":
                kept.pop(key, None)
            elif step == "p":
                kept.setdefault(key, size)
            elif step == "i" and kept:
                kept.popitem()
            elif step == "g":
                kept.get(key)
            elif step == "c" and key == 0:
                kept.clear()
            held_bytes = sum(value + sys.getsizeof(key) for key, value in kept.items())
            assert kept.statistics().size_bytes == held_bytes <= 1_500
            assert len(kept) <= 6
            assert set(kept._order) == set(kept)


class TestDict:
    """It is a dict to other code."""

    def test_other_code_takes_it_for_a_dict(self, options: dict[str, Any]) -> None:
        kept = BoundedDict({"a": 1, "b": 2}, **options)

        assert isinstance(kept, dict)
        assert json.dumps(kept) == '{"a": 1, "b": 2}'
        assert dict(**kept) == kept == {"b": 2, "a": 1}
        assert repr(kept) == "{'a': 1, 'b': 2}"
        assert kept.keys() & {"a"} == {"a"}
        assert type(kept | {"c": 3, "d": 4, "e": 5}) is dict
        assert {"c": 3} | kept == {"a": 1, "b": 2, "c": 3}
        with pytest.raises(TypeError):
            hash(kept)

    def test_reads_by_key_are_those_of_dict(self) -> None:
        for name in ("__getitem__", "get", "__contains__", "__len__", "__iter__", "keys", "values", "items", "__eq__"):
            assert getattr(BoundedDict, name) is getattr(dict, name), name

    def test_check_restores_what_was_bypassed(self, options: dict[str, Any]) -> None:
        kept = BoundedDict({1: 1, 2: 2, 3: 3}, **options)

        for number in (4, 5):
            dict.__setitem__(kept, number, number)
        assert len(kept) == 5

        assert kept.check() == 2
        assert list(kept) == [3, 4, 5]
        assert kept.check() == 0

    def test_next_write_restores_what_was_bypassed(self, options: dict[str, Any]) -> None:
        kept = BoundedDict({1: 1, 2: 2, 3: 3}, **options)
        for number in (4, 5):
            dict.__setitem__(kept, number, number)
        dict.pop(kept, 1)

        kept[6] = 6

        assert list(kept) == [4, 5, 6]

    def test_key_whose_hash_changes_does_not_hang(self, options: dict[str, Any]) -> None:
        class Key:
            number = 1

            def __hash__(self) -> int:
                return self.number

        key = Key()
        kept: BoundedDict[Any, int] = BoundedDict({key: 1}, **options)
        key.number = 2

        for number in range(10, 60):
            kept[number] = number

        assert 59 in kept

    def test_class_with_its_own_constructor_and_metaclass(self) -> None:
        made: list[str] = []

        class Registered(BoundedDict[str, int]):
            def __init__(self, name: str) -> None:
                super().__init__((), 2, drop="least_recent")
                self.name = name

            def __init_subclass__(cls) -> None:
                made.append(cls.__name__)

        kept = Registered("mine")
        kept.update(a=1, b=2, c=3)

        assert isinstance(kept, Registered)
        assert list(kept.copy()) == ["b", "c"]
        assert kept.copy().name == "mine"
        assert made == []
