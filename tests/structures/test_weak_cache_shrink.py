"""`WeakCache.shrink`."""

import sys
import time

import pytest

from memtools.readings import Level
from memtools.structures import WeakCache

NEVER = float("inf")


class Value:
    """Something that can be weakly referenced."""


def filled(**settings):
    """Return a cache with 8 young and 8 old entries whose values only the cache holds."""
    cache = WeakCache(strong=16, **settings)
    for number in range(16):
        cache[number] = Value()
    return cache


def test_warning_releases_the_old_generation():
    cache = filled(sizeof=lambda value: 100)

    freed_bytes = cache.shrink(Level.WARNING, NEVER)

    assert sorted(cache) == list(range(8, 16))
    assert freed_bytes == 800


def test_critical_releases_the_whole_strong_tier():
    cache = filled(sizeof=lambda value: 100)

    freed_bytes = cache.shrink(Level.CRITICAL, NEVER)

    assert len(cache) == 0
    assert freed_bytes == 1600


def test_normal_releases_nothing():
    cache = filled()

    assert cache.shrink(Level.NORMAL, NEVER) == 0
    assert len(cache) == 16


def test_values_held_elsewhere_are_found_and_not_counted():
    cache = filled(sizeof=lambda value: 100)
    cache["kept"] = kept = Value()  # the first of a new young generation, so 8 old ones are left

    freed_bytes = cache.shrink(Level.CRITICAL, NEVER)

    assert cache["kept"] is kept
    assert freed_bytes == 800


def test_strong_only_values_are_released_and_counted():
    cache = WeakCache(max_bytes=10_000, sizeof=len)
    cache["key"] = b"12345"

    freed_bytes = cache.shrink(Level.CRITICAL, NEVER)

    assert freed_bytes == 5
    assert len(cache) == 0
    assert cache.statistics().strong_bytes == 0


def test_hook_may_keep_a_released_value():
    evicted = {}
    cache = filled(sizeof=lambda value: 100, on_evict=evicted.__setitem__)

    freed_bytes = cache.shrink(Level.WARNING, NEVER)

    assert sorted(evicted) == list(range(8))
    assert freed_bytes == 0
    assert cache.statistics().evictions == 8


def test_passed_deadline_releases_nothing():
    cache = filled()

    assert cache.shrink(Level.CRITICAL, time.monotonic()) == 0
    assert len(cache) == 16


def test_large_tier_is_released_in_slices_until_the_deadline(monkeypatch):
    cache = WeakCache(strong=2000, sizeof=lambda value: 1)
    for number in range(2000):
        cache[number] = number
    now = iter([0.0, 0.0, 0.4, 0.8, 1.2])  # one reading before the purge, then one before each slice
    monkeypatch.setattr("memtools.structures._cache_store.time.monotonic", lambda: next(now))

    freed_bytes = cache.shrink(Level.CRITICAL, 1.0)
    monkeypatch.undo()

    assert freed_bytes == 3 * 256
    assert len(cache) == 2000 - 3 * 256
    assert 0 not in cache


@pytest.mark.parametrize("answer", [None, -5, 2.5])
def test_shrink_counts_no_bytes_of_a_wrong_size(answer):
    cache = filled(sizeof=lambda value: answer)

    assert cache.shrink(Level.CRITICAL, NEVER) == 0
    assert len(cache) == 0


def test_sizeof_that_fails_does_not_stop_shrink():
    def sizeof(value):
        raise LookupError

    cache = filled(sizeof=sizeof)

    assert cache.shrink(Level.CRITICAL, NEVER) == 0
    assert len(cache) == 0


def test_cache_without_strong_tier_releases_nothing():
    cache = WeakCache(strong=0)
    value = cache.setdefault("key", Value())

    assert cache.shrink(Level.CRITICAL, NEVER) == 0
    assert cache["key"] is value


def test_shrink_continues_where_it_stopped(monkeypatch):
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


def test_tier_of_several_listings_is_released_oldest_first(monkeypatch):
    monkeypatch.setattr("memtools.structures._cache_store._LISTED", 300)
    evicted = []
    cache = WeakCache(strong=2000, on_evict=lambda key, value: evicted.append(key))
    for number in range(2000):
        cache[number] = number

    cache.shrink(Level.CRITICAL, NEVER)

    assert evicted == list(range(2000))
    assert len(cache) == 0


def test_hook_that_puts_entries_back_cannot_prolong_shrink():
    cache = WeakCache(strong=1000, on_evict=lambda key, value: cache.__setitem__(key, value))
    for number in range(1000):
        cache[number] = number

    cache.shrink(Level.CRITICAL, NEVER)

    assert len(cache) > 0
    assert not cache.is_shrinking


def test_shrink_purges_the_entries_of_released_values():
    cache = WeakCache(strong=10_000)
    for number in range(10_000):
        cache[number] = Value()

    cache.shrink(Level.CRITICAL, NEVER)

    assert len(cache._dead) <= 512


def test_dead_entries_are_purged_in_slices(monkeypatch):
    values = [Value() for _ in range(2000)]
    cache = WeakCache(strong=0)
    cache.update(enumerate(values))
    values.clear()
    now = iter([0.0, 0.5, 1.0])
    monkeypatch.setattr("memtools.structures._cache_store.time.monotonic", lambda: next(now))

    cache.shrink(Level.NORMAL, 1.0)
    monkeypatch.undo()

    assert len(cache._dead) == 2000 - 2 * 256


def test_getsizeof_includes_the_tables():
    small, large = WeakCache(), WeakCache(strong=10_000)
    large.update((number, number) for number in range(10_000))

    assert sys.getsizeof(large) > sys.getsizeof(small) + 10_000 * 8
