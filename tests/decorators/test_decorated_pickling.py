"""Decorated functions that are pickled: the guard arrives with the function, or pickling is refused."""

import functools
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cloudpickle
import joblib
import pytest

from memtools import BudgetExceeded, bounded_history, memory_budget, memory_scope, profile_memory

DECORATORS = {
    "profile_memory": profile_memory,
    "profile_memory sampled": profile_memory(sample_every=2),
    "profile_memory rarely sampled": profile_memory(sample_every=100_000),
    "memory_budget": memory_budget("1 GiB"),
    "bounded_history": bounded_history(3),
    "bounded_history by key": bounded_history(3, key=len),
    "memory_scope": memory_scope("pickled"),
}
each_decorator = pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)


def load(size):
    return len(bytearray(size))


guarded = memory_budget("2 MiB")(load)


@memory_budget("2 MiB")
def load_guarded(size):
    return len(bytearray(size))


class Plan:
    @memory_budget("2 MiB")
    def load(self, size):
        return len(bytearray(size))


class Loader:
    def __call__(self, size):
        return len(bytearray(size))


guarded_partial = memory_budget("2 MiB")(functools.partial(load))
guarded_object = memory_budget("2 MiB")(Loader())


@memory_budget("2 MiB")
@functools.lru_cache
def load_cached(size):
    return len(bytearray(size))


def test_function_under_another_name_is_refused():
    with pytest.raises(pickle.PicklingError, match="not the same object"):
        pickle.dumps(guarded)


@each_decorator
def test_local_function_is_refused(decorate):
    @decorate
    def local():
        return 1

    with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
        pickle.dumps(local)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(decorate(lambda: 1))


@each_decorator
@pytest.mark.parametrize("kind", ["plain", "coroutine", "generator", "async generator"])
def test_local_function_is_pickled_by_value_with_its_decorator(decorate, kind):
    if kind == "async generator" and isinstance(decorate, memory_scope):
        pytest.skip("memory_scope refuses them")

    def plain(size):
        return len(bytearray(int(size)))

    async def coroutine(size):
        return len(bytearray(int(size)))

    def generator(size):
        yield len(bytearray(int(size)))

    async def async_generator(size):
        yield len(bytearray(int(size)))

    function = {"plain": plain, "coroutine": coroutine, "generator": generator, "async generator": async_generator}
    decorated = decorate(function[kind])

    back = pickle.loads(cloudpickle.dumps(decorated))

    assert back is not decorated
    assert back.__code__ == decorated.__code__
    assert back.__name__ == function[kind].__name__
    assert run(back("9")) == 9
    if hasattr(back, "memory"):
        assert back.memory.statistics().calls == 1
        assert decorated.memory.statistics().calls == 0
    if hasattr(back, "history"):
        assert back.history.summary().count == 1


def run(result):
    if hasattr(result, "asend"):
        result = result.asend(None)
    try:
        return next(result) if hasattr(result, "__next__") else result.send(None) if hasattr(result, "send") else result
    except StopIteration as end:
        return end.value


def test_budget_holds_after_pickling_by_value():
    @memory_budget("2 MiB")
    def local(size):
        return len(bytearray(size))

    back = pickle.loads(cloudpickle.dumps(local))

    with pytest.raises(BudgetExceeded):
        back(50_000_000)


@pytest.mark.parametrize("decorated", [guarded_partial, guarded_object], ids=["partial", "object"])
def test_callable_is_pickled_with_its_decorator(decorated):
    back = pickle.loads(pickle.dumps(decorated))

    assert back(5) == 5
    with pytest.raises(BudgetExceeded):
        back(50_000_000)


def test_callable_of_its_own_name_is_pickled_by_reference():
    assert pickle.loads(pickle.dumps(load_cached)) is load_cached
    assert load_cached.cache_info().maxsize == 128


@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
@pytest.mark.leaves("descriptor", reason="the tracker of multiprocessing stays for the process")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # libraries have threads
def test_budget_holds_in_the_workers_of_a_pool(method, monkeypatch):
    # A spawned worker imports this module. At the end of the path, as a checkout beside the installed package has the
    # package's source, too, which may lack its C parts and must not be found first.
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        for call in (load_guarded, Plan().load, guarded_partial, guarded_object):
            assert pool.submit(call, 5).result(timeout=60) == 5
            with pytest.raises(BudgetExceeded):
                pool.submit(call, 50_000_000).result(timeout=60)
        with pytest.raises(pickle.PicklingError):
            pool.submit(guarded, 5).result(timeout=60)


@pytest.mark.leaves("descriptor", "thread", reason="loky keeps its workers for later calls")
def test_budget_holds_in_the_workers_of_joblib():
    @memory_budget("2 MiB")
    def local(size):
        return len(bytearray(size))

    run_in_loky = joblib.Parallel(n_jobs=2, timeout=60)
    try:
        assert run_in_loky(joblib.delayed(local)(size) for size in (1, 2)) == [1, 2]
        with pytest.raises(BudgetExceeded):
            run_in_loky(joblib.delayed(local)(size) for size in (1, 50_000_000))
    finally:
        joblib.externals.loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)
