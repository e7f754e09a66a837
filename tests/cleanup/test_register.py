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
    before = {id(thing) for thing in registered()}
    yield
    gc.collect()
    assert {id(thing) for thing in registered()} <= before


def ours(kind: type) -> list[object]:
    return [thing for thing in registered() if isinstance(thing, kind)]


def test_registered_thing_is_listed_until_it_dies() -> None:
    cache = Cache()

    register(cache)

    assert ours(Cache) == [cache]
    del cache
    assert ours(Cache) == []


def test_register_keeps_nothing_alive() -> None:
    cache = Cache()
    witness = weakref.ref(cache)

    register(cache)
    del cache

    assert witness() is None


def test_second_registration_changes_nothing() -> None:
    cache = Cache()

    register(cache)
    register(cache)

    assert ours(Cache) == [cache]
    assert weakref.getweakrefcount(cache) == 1


def test_unregistered_thing_is_no_longer_listed() -> None:
    cache = Cache()
    register(cache)

    unregister(cache)

    assert ours(Cache) == []
    assert weakref.getweakrefcount(cache) == 0


def test_unregistering_a_stranger_does_nothing() -> None:
    unregister(Cache())
    unregister(Slotted())

    assert ours(Cache) == []


def test_unhashable_things_that_are_equal_are_two_things() -> None:
    first, second = EqualUnhashable([1]), EqualUnhashable([1])

    register(first)
    register(second)
    unregister(first)

    assert [id(thing) for thing in ours(EqualUnhashable)] == [id(second)]


def test_other_weak_references_are_left_alone() -> None:
    cache = Cache()
    others = weakref.ref(cache), weakref.ref(cache, lambda _: None)
    register(cache)

    unregister(cache)

    assert weakref.getweakrefs(cache) == list(others)


@pytest.mark.parametrize("stranger", [object(), [], None, 7, type("Data", (), {"shrink": 3})()])
def test_thing_without_shrink_is_refused(stranger: object) -> None:
    before = len(registered())

    with pytest.raises(ConfigError, match="shrink") as refusal:
        register(stranger)  # type: ignore[arg-type]

    assert isinstance(refusal.value, MemtoolsError)
    assert len(registered()) == before


def test_thing_without_weak_references_is_refused() -> None:
    with pytest.raises(ConfigError, match="weakly referenced"):
        register(Slotted())

    assert ours(Slotted) == []


def test_snapshot_survives_deaths_on_the_way() -> None:
    caches = [Cache() for _ in range(100)]
    for cache in caches:
        register(cache)
    del cache

    snapshot = registered()
    caches.clear()

    assert sum(isinstance(thing, Cache) for thing in snapshot) == 100
    del snapshot
    assert ours(Cache) == []


def test_place_given_up_in_mid_iteration_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Cache(), Cache()
    register(first)
    register(second)

    for thing in registered():
        if isinstance(thing, Cache):
            unregister(thing)
            register(Cache())  # dies at once
    del first, second, thing
    gc.collect()

    assert ours(Cache) == []
    assert capsys.readouterr().err == ""  # a callback that fails is printed, not raised


def test_register_works_in_finalisers_of_cycles() -> None:
    outcome: list[str] = []

    class Dying(Cache):
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            register(Cache())
            unregister(self)
            registered()
            outcome.append("done")

    for _ in range(10):
        register(Dying())
    gc.collect()

    assert outcome == ["done"] * 10
    assert ours(Dying) == []


def test_threads_may_come_and_go_together() -> None:
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
    assert sorted(map(id, ours(Cache))) == sorted(map(id, kept))


def test_thing_registered_twice_at_the_same_moment_is_listed_once() -> None:
    cache = Cache()
    start = threading.Barrier(4)

    def join() -> None:
        start.wait(10)
        register(cache)

    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert ours(Cache) == [cache]
    unregister(cache)
    assert ours(Cache) == []
