"""WeakCache when memory runs short."""

import sys
import time

from memtools.readings import Level
from memtools.structures import WeakCache

NEVER = float("inf")


class Value:
    """Something that can be weakly referenced."""


def filled(**settings):
    """Return a cache with 8 young and 8 old entries that nobody else holds."""
    cache = WeakCache(strong=16, **settings)
    for number in range(16):
        cache[number] = Value()
    return cache


def test_a_warning_costs_the_old_half():
    cache = filled(sizeof=lambda value: 100)

    freed_bytes = cache.shrink(Level.WARNING, NEVER)

    assert sorted(cache) == list(range(8, 16))
    assert freed_bytes == 800


def test_critical_costs_the_whole_strong_tier():
    cache = filled(sizeof=lambda value: 100)

    freed_bytes = cache.shrink(Level.CRITICAL, NEVER)

    assert len(cache) == 0
    assert freed_bytes == 1600


def test_normal_costs_nothing():
    cache = filled()

    assert cache.shrink(Level.NORMAL, NEVER) == 0
    assert len(cache) == 16


def test_what_others_hold_is_still_found_and_not_counted_as_given_back():
    cache = filled(sizeof=lambda value: 100)
    cache["kept"] = kept = Value()  # the first of a new young generation, so 8 old ones are left

    freed_bytes = cache.shrink(Level.CRITICAL, NEVER)

    assert cache["kept"] is kept
    assert freed_bytes == 800


def test_values_that_cannot_be_weakly_referenced_go_and_count():
    cache = WeakCache(max_bytes=10_000, sizeof=len)
    cache["key"] = b"12345"

    freed_bytes = cache.shrink(Level.CRITICAL, NEVER)

    assert freed_bytes == 5
    assert len(cache) == 0
    assert cache.statistics().strong_bytes == 0


def test_the_hook_is_told_and_may_keep_a_value():
    gone = {}
    cache = filled(sizeof=lambda value: 100, on_evict=gone.__setitem__)

    freed_bytes = cache.shrink(Level.WARNING, NEVER)

    assert sorted(gone) == list(range(8))
    assert freed_bytes == 0
    assert cache.statistics().evictions == 8


def test_nothing_happens_after_the_deadline():
    cache = filled()

    assert cache.shrink(Level.CRITICAL, time.monotonic()) == 0
    assert len(cache) == 16


def test_a_large_tier_goes_in_slices_until_the_deadline(monkeypatch):
    cache = WeakCache(strong=2000, sizeof=lambda value: 1)
    for number in range(2000):
        cache[number] = number
    now = iter([0.0, 0.0, 0.4, 0.8, 1.2])  # one look before what is too old, then one before each slice
    monkeypatch.setattr("memtools.structures._cache_store.time.monotonic", lambda: next(now))

    freed_bytes = cache.shrink(Level.CRITICAL, 1.0)
    monkeypatch.undo()

    assert freed_bytes == 3 * 256
    assert len(cache) == 2000 - 3 * 256
    assert 0 not in cache


def test_a_sizeof_that_fails_stops_nobody_from_giving_memory_back():
    def sizeof(value):
        raise LookupError

    cache = filled(sizeof=sizeof)

    assert cache.shrink(Level.CRITICAL, NEVER) == 0
    assert len(cache) == 0


def test_a_cache_without_a_strong_tier_has_nothing_to_give():
    cache = WeakCache(strong=0)
    value = cache.setdefault("key", Value())

    assert cache.shrink(Level.CRITICAL, NEVER) == 0
    assert cache["key"] is value


def test_a_large_tier_goes_on_where_it_stopped(monkeypatch):
    cache = WeakCache(strong=2000, sizeof=lambda value: 1)
    for number in range(2000):
        cache[number] = number
    now = iter([0.0, 0.0, 0.4, 1.2])
    monkeypatch.setattr("memtools.structures._cache_store.time.monotonic", lambda: next(now))
    cache.shrink(Level.CRITICAL, 1.0)
    monkeypatch.undo()
    assert cache.is_shrinking

    freed_bytes = cache.shrink(Level.CRITICAL, NEVER)

    assert freed_bytes == 2000 - 2 * 256
    assert len(cache) == 0
    assert not cache.is_shrinking


def test_a_tier_of_more_keys_than_are_listed_at_once_goes_whole_and_oldest_first(monkeypatch):
    monkeypatch.setattr("memtools.structures._cache_store._LISTED", 300)
    gone = []
    cache = WeakCache(strong=2000, on_evict=lambda key, value: gone.append(key))
    for number in range(2000):
        cache[number] = number

    cache.shrink(Level.CRITICAL, NEVER)

    assert gone == list(range(2000))
    assert len(cache) == 0


def test_what_a_hook_puts_back_cannot_keep_the_ladder_busy():
    cache = WeakCache(strong=1000, on_evict=lambda key, value: cache.__setitem__(key, value))
    for number in range(1000):
        cache[number] = number

    cache.shrink(Level.CRITICAL, NEVER)

    assert len(cache) > 0
    assert not cache.is_shrinking


def test_values_that_die_by_shrinking_leave_no_work_for_the_next_caller():
    cache = WeakCache(strong=10_000)
    for number in range(10_000):
        cache[number] = Value()

    cache.shrink(Level.CRITICAL, NEVER)

    assert len(cache._dead) <= 512


def test_the_dead_are_buried_in_portions(monkeypatch):
    values = [Value() for _ in range(2000)]
    cache = WeakCache(strong=0)
    cache.update(enumerate(values))
    values.clear()
    now = iter([0.0, 0.5, 1.0])
    monkeypatch.setattr("memtools.structures._cache_store.time.monotonic", lambda: next(now))

    cache.shrink(Level.NORMAL, 1.0)
    monkeypatch.undo()

    assert len(cache._dead) == 2000 - 2 * 256


def test_the_tables_of_a_cache_count_as_its_size():
    small, large = WeakCache(), WeakCache(strong=10_000)
    large.update((number, number) for number in range(10_000))

    assert sys.getsizeof(large) > sys.getsizeof(small) + 10_000 * 8
