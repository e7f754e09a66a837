"""The registry of shrinkable objects."""

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from memtools.cleanup import register, registered, unregister
from memtools.errors import ConfigError, MemtoolsError
from memtools.readings import Level


class Cache:
    def shrink(self, level: Level, deadline: float) -> int:
        return 0


class EqualUnhashable(list[int]):
    def shrink(self, level: Level, deadline: float) -> int:
        return 0


class Slotted:
    __slots__ = ()

    def shrink(self, level: Level, deadline: float) -> int:
        return 0


@pytest.fixture(autouse=True)
def nothing_left_registered() -> Iterator[None]:
    before = {id(shrinkable) for shrinkable in registered()}
    yield
    gc.collect()
    assert {id(shrinkable) for shrinkable in registered()} <= before


def registered_of(kind: type) -> list[object]:
    return [shrinkable for shrinkable in registered() if isinstance(shrinkable, kind)]


def test_registered_object_is_listed_until_it_dies() -> None:
    cache = Cache()

    register(cache)

    assert registered_of(Cache) == [cache]
    del cache
    assert registered_of(Cache) == []


def test_registry_does_not_keep_objects_alive() -> None:
    cache = Cache()
    witness = weakref.ref(cache)

    register(cache)
    del cache

    assert witness() is None


def test_second_registration_changes_nothing() -> None:
    cache = Cache()

    register(cache)
    register(cache)

    assert registered_of(Cache) == [cache]
    assert weakref.getweakrefcount(cache) == 1


def test_unregistered_object_is_no_longer_listed() -> None:
    cache = Cache()
    register(cache)

    unregister(cache)

    assert registered_of(Cache) == []
    assert weakref.getweakrefcount(cache) == 0


def test_unregister_of_an_unknown_object_does_nothing() -> None:
    unregister(Cache())
    unregister(Slotted())

    assert registered_of(Cache) == []


def test_equal_unhashable_objects_are_registered_separately() -> None:
    first, second = EqualUnhashable([1]), EqualUnhashable([1])

    register(first)
    register(second)
    unregister(first)

    assert [id(shrinkable) for shrinkable in registered_of(EqualUnhashable)] == [id(second)]


def test_unregister_keeps_other_weak_references() -> None:
    cache = Cache()
    other_references = weakref.ref(cache), weakref.ref(cache, lambda _: None)
    register(cache)

    unregister(cache)

    assert weakref.getweakrefs(cache) == list(other_references)


@pytest.mark.parametrize("candidate", [object(), [], None, 7, type("Data", (), {"shrink": 3})()])
def test_object_without_shrink_is_refused(candidate: object) -> None:
    before = len(registered())

    with pytest.raises(ConfigError, match="shrink") as caught:
        register(candidate)  # type: ignore[arg-type]

    assert isinstance(caught.value, MemtoolsError)
    assert len(registered()) == before


def test_object_without_weak_references_is_refused() -> None:
    with pytest.raises(ConfigError, match="weakly referenced"):
        register(Slotted())

    assert registered_of(Slotted) == []


def test_snapshot_survives_deaths_during_iteration() -> None:
    caches = [Cache() for _ in range(100)]
    for cache in caches:
        register(cache)
    del cache

    snapshot = registered()
    caches.clear()

    assert sum(isinstance(shrinkable, Cache) for shrinkable in snapshot) == 100
    del snapshot
    assert registered_of(Cache) == []


def test_unregister_during_iteration_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Cache(), Cache()
    register(first)
    register(second)

    for shrinkable in registered():
        if isinstance(shrinkable, Cache):
            unregister(shrinkable)
            register(Cache())  # dies at once
    del first, second, shrinkable
    gc.collect()

    assert registered_of(Cache) == []
    assert capsys.readouterr().err == ""  # a callback that fails is printed, not raised


def test_registry_works_in_finalisers_of_cycles() -> None:
    outcome: list[str] = []

    class Dying(Cache):
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            register(Cache())
            unregister(self)
            registered()
            outcome.append("done")

    for _ in range(10):
        register(Dying())
    gc.collect()

    assert outcome == ["done"] * 10
    assert registered_of(Dying) == []


def test_threads_register_and_unregister_concurrently() -> None:
    start = threading.Barrier(4)
    kept = [Cache() for _ in range(4)]
    failures: list[BaseException] = []

    def churn(own: Cache) -> None:
        try:
            start.wait(10)
            for _ in range(500):
                register(Cache())
                register(own)
                registered()
                unregister(own)
            register(own)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=churn, args=(own,)) for own in kept]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failures == []
    assert sorted(map(id, registered_of(Cache))) == sorted(map(id, kept))


def test_object_registered_by_two_threads_is_listed_once() -> None:
    cache = Cache()
    start = threading.Barrier(4)

    def register_at_once() -> None:
        start.wait(10)
        register(cache)

    threads = [threading.Thread(target=register_at_once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert registered_of(Cache) == [cache]
    unregister(cache)
    assert registered_of(Cache) == []
