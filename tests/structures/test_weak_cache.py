"""`WeakCache` as a mapping: tiers, expiry, bytes, hooks and statistics."""

import copy
import gc
import logging
import pickle
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.cleanup import registered
from memtools.errors import ConfigError, MemtoolsError, NotWeakReferenceable
from memtools.structures import WeakCache


class Value:
    """Something that can be weakly referenced."""

    def __init__(self, name=""):
        self.name = name


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def fill(cache, count, start=0):
    """Set `count` values that only the cache holds."""
    for number in range(start, start + count):
        cache[number] = Value(number)


def test_value_is_found_as_long_as_it_is_held():
    cache = WeakCache(strong=0)
    value = Value()
    cache["key"] = value

    found = cache["key"] is value
    del value

    assert found
    assert "key" not in cache
    assert len(cache) == 0


def test_strong_tier_keeps_the_last_values_alive():
    cache = WeakCache(strong=4)

    fill(cache, 100)

    assert sorted(cache) == [96, 97, 98, 99]


@pytest.mark.parametrize("strong", [1, 2, 3, 4, 5, 127, 128])
def test_strong_tier_holds_the_last_half_and_at_most_strong(strong):
    cache = WeakCache(strong=strong)

    for number in range(3 * strong + 7):
        cache[number] = Value()
        last = range(max(0, number - strong // 2 + 1), number + 1)

        assert len(cache) <= strong
        assert all(key in cache for key in last)


def test_used_entry_stays_in_the_strong_tier():
    cache = WeakCache(strong=4)
    cache["used"] = Value()

    for number in range(100):
        cache[number] = Value()
        cache.get("used")

    assert "used" in cache
    assert 50 not in cache


def test_hit_in_the_weak_tier_makes_the_entry_strong():
    cache = WeakCache(strong=2)
    value = Value("kept elsewhere")
    cache["key"] = value
    fill(cache, 10)

    found = cache.get("key")
    del value, found

    assert "key" in cache


def test_contains_is_not_a_use():
    cache = WeakCache(strong=2)
    cache["key"] = Value()
    before = cache.statistics()

    for number in range(5):
        cache[number] = Value()
        "key" in cache  # noqa: B015

    assert "key" not in cache
    assert (cache.statistics().hits, cache.statistics().misses) == (before.hits, before.misses)


@pytest.mark.parametrize("value", [1, "text", (1, 2), {"a": 1}, [1], None, 1.5])
def test_strong_only_value_lives_in_the_strong_tier(value):
    cache = WeakCache(strong=2)

    cache["key"] = value
    found = cache["key"]
    strong_only = cache.statistics().strong_only
    fill(cache, 4)

    assert found is value
    assert strong_only == 1
    assert "key" not in cache
    assert cache.get("key", "evicted") == "evicted"
    assert cache.statistics().strong_only == 0


@pytest.mark.parametrize("settings", [{"weak_only": True}, {"strong": 0}])
def test_weak_only_cache_refuses_other_values(settings):
    cache = WeakCache(**settings)
    kept = Value()
    cache["key"] = kept

    with pytest.raises(NotWeakReferenceable, match="type int cannot be weakly referenced") as caught:
        cache["key"] = 1

    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, MemtoolsError)
    assert cache["key"] is kept


def test_none_is_a_value():
    cache = WeakCache()

    cache["key"] = None

    assert cache["key"] is None
    assert cache.get("key", "default") is None
    assert cache.pop("key", "default") is None
    assert "key" not in cache


def test_new_value_replaces_the_old_one():
    cache = WeakCache(strong=0)
    first, second = Value(), Value()
    cache["key"] = first

    cache["key"] = second
    del first

    assert cache["key"] is second
    assert len(cache) == 1


def test_death_of_a_replaced_value_keeps_the_new_one():
    cache = WeakCache(strong=0)
    first = Value()
    cache["key"] = first
    reference = cache._index["key"]  # keeps the weak reference alive, so that its callback runs
    second = Value()
    cache["key"] = second

    del first
    dead = len(cache._dead)

    assert dead == 1
    assert reference() is None
    assert cache["key"] is second
    assert len(cache) == 1


def test_index_does_not_grow_with_dead_entries():
    cache = WeakCache(strong=0)

    for number in range(10_000):
        cache[number] = Value()

    assert len(cache._index) <= 1
    assert len(cache._dead) <= 1


def test_values_in_cycles_are_dead_after_a_collection():
    cache = WeakCache(strong=0)
    value = Value()
    value.me = value
    cache["key"] = value

    del value
    gc.collect()

    assert len(cache) == 0


def test_pop_del_popitem_and_clear_remove_entries():
    cache = WeakCache()
    values = [Value(number) for number in range(6)]
    cache.update(enumerate(values))

    assert cache.pop(0) is values[0]
    assert cache.pop(0, None) is None
    del cache[1]
    assert cache.popitem() == (5, values[5])
    assert list(cache) == [2, 3, 4]
    cache.clear()
    assert len(cache) == 0
    assert cache.statistics().strong == 0


@pytest.mark.parametrize("act", [lambda c: c["no"], lambda c: c.pop("no"), lambda c: c.popitem()])
def test_missing_key_raises_key_error_without_context(act):
    with pytest.raises(KeyError) as caught:
        act(WeakCache())

    assert caught.value.__context__ is None


def test_setdefault_keeps_the_first_value():
    cache = WeakCache()
    first, second = Value(), Value()

    assert cache.setdefault("key", first) is first
    assert cache.setdefault("key", second) is first


def test_iteration_is_over_a_snapshot_without_dead_values():
    cache = WeakCache(strong=0)
    values = {number: Value() for number in range(5)}
    cache.update(values)
    seen = []

    for key in cache:
        seen.append(key)
        values.pop(key + 1, None)
        cache[key + 100] = values.setdefault(key + 100, Value())

    assert seen == [0, 2, 4]


def test_iteration_over_items_keeps_no_value_alive():
    cache = WeakCache(strong=0)
    values = [Value(number) for number in range(3)]
    cache.update(enumerate(values))
    walk = iter(cache.items())
    first = next(walk)

    del values, first

    assert list(walk) == []


def test_contains_of_views_is_not_a_use():
    cache = WeakCache()
    value = Value()
    cache["key"] = value

    assert value in cache.values()
    assert ("key", value) in cache.items()
    assert ("key", Value()) not in cache.items()
    assert "key" in cache.keys()  # noqa: SIM118
    assert len(cache.items()) == len(cache.values()) == 1
    assert cache.statistics().hits == 0


def test_unhashable_key_is_refused():
    cache = WeakCache()

    with pytest.raises(TypeError, match="unhashable"):
        cache[[]] = Value()
    with pytest.raises(TypeError, match="unhashable"):
        cache.get([])

    assert len(cache) == 0


def test_copy_has_the_same_entries_and_settings():
    cache = WeakCache(strong=2)
    value = Value()
    cache["key"] = value

    copied = copy.copy(cache)
    deep = copy.deepcopy(cache)
    fill(copied, 3)

    assert copied["key"] is value
    assert deep["key"] is value
    assert len(cache) == 1
    assert copied.statistics().strong <= 2


class Reports(WeakCache):
    """A cache with an attribute, a slot and a constructor of its own."""

    __slots__ = ("__dict__", "note")

    def __init__(self, source):
        super().__init__(strong=10)
        self.source = source
        self.note = ["n"]


@pytest.mark.parametrize(
    "way", [copy.copy, copy.deepcopy, WeakCache.copy, lambda cache: cache | {}, lambda cache: {} | cache]
)
def test_copies_keep_what_a_subclass_has_added(way):
    reports = Reports(["db"])
    reports["kept"] = value = Value()

    copied = way(reports)

    assert type(copied) is Reports
    assert (copied.source, copied.note) == (["db"], ["n"])
    assert (copied.source is reports.source) == (way is not copy.deepcopy)
    assert copied["kept"] is value
    assert copied.statistics().hits == 1


def test_deepcopy_of_a_cache_that_holds_itself():
    reports = Reports("db")
    reports.source = reports

    copied = copy.deepcopy(reports)

    assert copied.source is copied


def test_copies_use_the_state_that_a_subclass_defines():
    class Restoring(WeakCache):
        def __getstate__(self):
            return {"from": "getstate"}

        def __setstate__(self, state):
            self.state = state

    assert copy.copy(Restoring()).state == {"from": "getstate"}


class Remade(WeakCache):
    """A cache that a pickle makes anew."""

    def __reduce__(self):
        return Remade, ()


def test_subclass_may_define_reduce():
    assert type(pickle.loads(pickle.dumps(Remade()))) is Remade


def test_pickling_raises_and_names_the_alternative():
    with pytest.raises(TypeError, match=r"cannot pickle 'WeakCache' object.*pickle dict\(cache.items\(\)\)"):
        pickle.dumps(WeakCache())


@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.sampled_from(["set", "get", "pop", "drop", "default"]), st.integers(0, 8)), max_size=60),
)
def test_cache_agrees_with_a_dict_on_held_values(strong, acts):
    cache = WeakCache(strong=strong)
    model = {}  # also what keeps the values alive

    for act, key in acts:
        if act == "set":
            cache[key] = model[key] = Value(key)
        elif act == "get":
            if key in model:
                assert cache.get(key) is model[key]
        elif act == "pop":
            assert cache.pop(key, None) is model.pop(key, None) or key not in model
        elif act == "default":
            fresh = Value(key)
            kept = cache.setdefault(key, fresh)
            model[key] = kept
        else:
            model.pop(key, None)  # dies, or stays in the strong tier

        assert all(cache.get(held) is value for held, value in model.items())
        figures = cache.statistics()
        assert figures.strong <= strong
        assert figures.strong + figures.weak == len(cache) == len(list(cache)) >= len(model)


def test_entry_expires_even_if_its_value_is_held():
    clock = Clock()
    cache = WeakCache(ttl=10, clock=clock)
    value = Value()
    cache["key"] = value

    clock.now += 9.9
    before = cache.get("key")
    clock.now += 0.1

    assert before is value
    assert "key" not in cache
    assert cache.get("key") is None
    assert cache.statistics().expirations == 1
    assert cache.statistics().strong == 0


def test_setting_prolongs_an_entry_and_a_hit_does_not():
    clock = Clock()
    cache = WeakCache(ttl=10, clock=clock)
    cache["read"], cache["set"] = 1, 2

    clock.now += 6
    cache.get("read")
    cache["set"] = 3
    clock.now += 6

    assert dict(cache) == {"set": 3}


def test_expired_entries_are_removed_by_later_writes():
    clock = Clock()
    cache = WeakCache(strong=1000, ttl=10, clock=clock)
    fill(cache, 100)
    clock.now += 11

    for number in range(10):
        cache["new", number] = Value()

    assert len(cache._index) == 10


def test_replaced_entry_expires_last():
    clock = Clock()
    cache = WeakCache(ttl=10, clock=clock)
    cache["first"], cache["second"] = 1, 2
    clock.now += 5
    cache["first"] = 3
    clock.now += 6

    assert list(cache) == ["first"]


def test_pop_of_an_expired_entry_is_a_miss():
    clock = Clock()
    cache = WeakCache(ttl=1, clock=clock)
    cache["key"] = 1
    clock.now += 1

    assert cache.pop("key", "none") == "none"
    with pytest.raises(KeyError):
        cache.popitem()


def test_strong_tier_stays_within_max_bytes():
    cache = WeakCache(strong=1000, max_bytes=100, sizeof=lambda value: value.name)

    for size in [10, 20, 30, 40, 50, 60, 70, 10, 10, 100, 1, 0]:
        cache[size] = Value(size)
        figures = cache.statistics()

        assert figures.strong_bytes <= 100
        assert size in cache


def test_value_larger_than_max_bytes_is_not_held_strongly():
    evicted = []
    cache = WeakCache(max_bytes="1 kB", sizeof=len, on_evict=lambda key, value: evicted.append(key))
    cache["small"] = b"1"

    cache["large"] = b"1" * 1001

    assert evicted == ["large"]
    assert "large" not in cache
    assert "small" in cache


def test_strong_bytes_follow_replacing_and_removing():
    cache = WeakCache(max_bytes=1000, sizeof=len)
    cache["a"], cache["b"] = b"12345", b"123"

    cache["a"] = b"1"
    del cache["b"]

    assert cache.statistics().strong_bytes == 1


def test_sizeof_that_fails_leaves_the_cache_unchanged():
    def sizeof(value):
        raise LookupError

    cache = WeakCache(max_bytes=1000, sizeof=sizeof)

    with pytest.raises(LookupError):
        cache["key"] = 1

    assert len(cache) == 0


@pytest.mark.parametrize("answer", [None, True, 2.5, "8", b"8"])
def test_sizeof_that_gives_no_number_is_refused(answer):
    sizes = [3, answer]
    cache = WeakCache(max_bytes=1000, sizeof=lambda value: sizes.pop(0))
    cache["key"] = "before"

    with pytest.raises(ConfigError, match="a function that returns a number of bytes, not") as refusal:
        cache["key"] = "after"

    assert refusal.value.name == "sizeof"
    assert dict(cache) == {"key": "before"}
    assert cache.statistics().strong_bytes == 3


def test_negative_sizes_do_not_lift_the_bound(caplog):
    cache = WeakCache(max_bytes=100, sizeof=lambda value: -5)
    kept = cache["kept"] = Value()

    for number in range(100):
        cache[number] = Value(number)

    assert list(cache) == ["kept"]
    assert kept is not None
    assert cache.statistics().strong_bytes == 0
    assert "returned -5 for a value; the value is not held strongly" in caplog.text


def test_sizes_of_other_number_types_are_accepted():
    class Size:
        def __index__(self):
            return 7

    cache = WeakCache(max_bytes=100, sizeof=lambda value: Size())
    cache["key"] = 1

    assert cache.statistics().strong_bytes == 7


@given(
    st.integers(1, 9),
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30), st.booleans()), max_size=60),
)
def test_bounds_hold_at_random(strong, max_bytes, sets):
    cache = WeakCache(strong=strong, max_bytes=max_bytes, sizeof=lambda value: value[1])

    for key, size, is_read in sets:
        if is_read:
            cache.get(key)
        else:
            cache[key] = (key, size)
        figures = cache.statistics()

        assert figures.strong <= strong
        assert figures.strong_bytes <= max_bytes
        assert figures.strong_bytes == sum(size for _, size in cache.values())
        assert figures.strong == figures.strong_only == len(cache)


def test_hook_gets_evicted_entries_only():
    evicted = []
    cache = WeakCache(strong=2, on_evict=lambda key, value: evicted.append((key, value)))
    cache["a"] = 1
    cache["a"] = 2
    del cache["a"]
    cache["b"] = 3
    cache.pop("b")
    cache["c"] = 4
    cache.clear()
    cache["d"], cache["e"], cache["f"] = 5, 6, 7

    assert evicted == [("d", 5)]
    assert cache.statistics().evictions == 1


def test_hook_gets_strong_entries_that_expire():
    clock = Clock()
    evicted = []
    cache = WeakCache(ttl=5, clock=clock, on_evict=lambda key, value: evicted.append(key))
    cache["key"] = 1
    clock.now += 5

    cache.get("key")

    assert evicted == ["key"]


def test_hook_runs_outside_the_lock():
    free = []

    def on_evict(key, value):
        free.append(not cache._lock._is_owned())

    cache = WeakCache(strong=1, on_evict=on_evict)
    fill(cache, 3)
    cache.get_or_create("x", Value)
    cache.setdefault("y", Value())

    assert free == [True] * 4


def test_hook_that_fails_is_logged_once_and_counted(caplog):
    def on_evict(key, value):
        raise ValueError("broken")

    cache = WeakCache(strong=1, on_evict=on_evict)
    with caplog.at_level(logging.ERROR, "memtools.structures"):
        fill(cache, 5)

    assert cache.statistics().hook_failures == 4
    assert len(caplog.records) == 1
    assert cache.statistics().strong == 1


def test_hook_that_puts_all_entries_back_is_stopped(caplog):
    cache = WeakCache(strong=8, on_evict=lambda key, value: cache.update({key: value}))

    with caplog.at_level(logging.ERROR, "memtools.structures"):
        for number in range(50):
            cache[number] = number

    assert len(cache) <= 8
    assert "puts items back" in caplog.text


def test_interrupt_in_the_hook_passes():
    def on_evict(key, value):
        raise KeyboardInterrupt

    cache = WeakCache(strong=1, on_evict=on_evict)
    cache[1] = 1

    with pytest.raises(KeyboardInterrupt):
        cache[2] = 2
    with pytest.raises(KeyboardInterrupt):
        cache[3] = 3


def test_statistics_count_what_happened():
    cache = WeakCache(strong=2)
    kept = Value()
    cache["kept"] = kept
    fill(cache, 3)

    cache.get("kept")
    cache.get("no")
    figures = cache.statistics()

    assert (figures.hits, figures.misses, figures.hit_ratio) == (1, 1, 0.5)
    assert figures.strong + figures.weak == len(cache)
    assert figures.evictions == 3
    assert figures.strong_bytes is None
    assert WeakCache().statistics().hit_ratio == 0


def test_repr_is_one_line_without_repr_of_values():
    class Loud:
        def __repr__(self):
            raise AssertionError

    cache = WeakCache()
    cache["key"] = loud = Loud()

    assert repr(cache).startswith("<WeakCache entries=1 strong=1/128 hits=0 at 0x")
    assert "\n" not in repr(cache)
    assert loud is not None


def test_cache_leaves_no_reference_cycle():
    cache = WeakCache(on_evict=print, ttl=5)
    cache["key"] = value = Value()
    seen = weakref.ref(cache)

    gc.disable()
    try:
        del cache
        died = seen() is None
    finally:
        gc.enable()

    assert died
    assert value is not None


def test_cache_is_registered_unless_not_shrinkable():
    ours, not_ours = WeakCache(), WeakCache(shrinkable=False)

    found = [id(shrinkable) for shrinkable in registered()]

    assert id(ours) in found
    assert id(not_ours) not in found


@pytest.mark.parametrize(
    "settings",
    [
        {"strong": -1},
        {"strong": True},
        {"strong": 1.5},
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": float("nan")},
        {"ttl": "5"},
        {"max_bytes": -1},
        {"max_bytes": "10 Mb"},
        {"on_evict": 5},
        {"weak_only": None},
        {"shrinkable": 1},
        {"sizeof": None},
        {"clock": 5},
    ],
)
def test_invalid_settings_are_refused(settings):
    (name,) = settings

    with pytest.raises(ConfigError) as caught:
        WeakCache(**settings)

    assert caught.value.name == name


def test_cache_works_if_every_hit_takes_the_lock(monkeypatch):
    monkeypatch.setattr("memtools.structures._cache_store.HITS_NEED_LOCK", True)  # as without the GIL
    cache = WeakCache(strong=2)
    cache["key"] = value = Value()

    hidden = not cache._hot
    for _ in range(3):
        assert cache["key"] is cache.get("key") is value

    assert hidden
    assert not cache._hot
    assert cache.statistics().hits == 6


def test_lookup_after_a_large_eviction_purges_a_part() -> None:
    class Value:
        pass

    cache: WeakCache[int, Value] = WeakCache(strong=40_000)
    for number in range(60_001):  # the last one evicts 20,000 at once
        cache[number] = Value()
    waiting = len(cache._dead)

    assert cache.get(-1) is None
    assert waiting - 2_000 < len(cache._dead) < waiting
    assert cache.get(1) is None  # it has died, whether it was purged or not
    assert len(cache) == 40_000 - 19_999
    assert len(cache._dead) == 0
