"""What all three decorators keep of a function: name, kind, binding, pickling, errors."""

import abc
import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import operator
import pickle
import subprocess
import sys
import types
import typing
import warnings
import weakref
from unittest import mock

import pytest

from memtools import BudgetExceeded, ConfigError, bounded_history, memory_budget, profile_memory
from memtools.ledger import forget_accounts, statistics

DECORATORS = {
    "profile_memory bare": profile_memory,
    "profile_memory called": profile_memory(),
    "profile_memory tracemalloc": profile_memory(meter="tracemalloc"),
    "memory_budget": memory_budget("1 GiB"),
    "memory_budget tracemalloc": memory_budget("1 GiB", meter="tracemalloc"),
    "bounded_history bare": bounded_history,
    "bounded_history called": bounded_history(10, keep=5),
    "bounded_history tracemalloc": bounded_history(10, meter="tracemalloc"),
}


@pytest.fixture(params=DECORATORS.values(), ids=DECORATORS)
def decorate(request):
    return request.param


def plain(first, second=2):
    """Add two numbers."""
    return first + second


@profile_memory
def module_level(number):
    return number + 1


class Holder:
    @profile_memory
    def method(self):
        return 41


def test_decorated_function_keeps_name_docs_and_signature(decorate):
    decorated = decorate(plain)

    assert decorated(1, second=3) == 4
    assert decorated.__name__ == "plain"
    assert decorated.__qualname__ == "plain"
    assert decorated.__doc__ == "Add two numbers."
    assert decorated.__module__ == __name__
    assert inspect.signature(decorated) == inspect.signature(plain)
    assert decorated.__wrapped__ is plain


def test_decorated_function_keeps_its_kind_for_inspect(decorate):
    async def coroutine():
        return 1

    def generator():
        yield 1

    async def async_generator():
        yield 1

    assert inspect.iscoroutinefunction(decorate(coroutine))
    assert inspect.isgeneratorfunction(decorate(generator))
    assert inspect.isasyncgenfunction(decorate(async_generator))
    assert not inspect.iscoroutinefunction(decorate(plain))


async def test_decorated_coroutine_behaves_like_a_native_one(decorate):
    @decorate
    async def work(outcome):
        await asyncio.sleep(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    running = work(5)

    assert inspect.iscoroutine(running)
    assert running.__qualname__.endswith("work")
    assert await running == 5
    with pytest.raises(KeyError, match="gone"):
        await work(KeyError("gone"))


async def test_wrong_arguments_of_a_coroutine_raise_at_the_call(decorate):
    @decorate
    async def work(one):
        return one

    with pytest.raises(TypeError, match="positional argument"):
        work(1, 2)


def test_decorated_generator_supports_send_throw_and_close(decorate):
    closed = []

    @decorate
    def work():
        try:
            got = yield 1
            try:
                yield got
            except KeyError:
                yield "caught"
            yield "last"
        finally:
            closed.append(True)
        return "result"

    running = work()
    assert next(running) == 1
    assert running.send("sent") == "sent"
    assert running.throw(KeyError()) == "caught"
    assert next(running) == "last"
    with pytest.raises(StopIteration) as end:
        next(running)
    assert end.value.value == "result"

    second = work()
    next(second)
    second.close()
    assert closed == [True, True]


async def test_decorated_async_generator_supports_send_and_close(decorate):
    closed = []

    @decorate
    async def work():
        try:
            got = yield 1
            await asyncio.sleep(0)
            try:
                yield got
            except KeyError:
                yield "caught"
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    running = work()
    assert await anext(running) == 1
    assert await running.asend("sent") == "sent"
    assert await running.athrow(KeyError()) == "caught"
    with pytest.raises(StopAsyncIteration):
        await anext(running)

    second = work()
    await anext(second)
    await second.aclose()
    assert closed == [True, True]


def test_decorated_methods_bind_in_either_decorator_order(decorate):
    class Thing:
        @decorate
        def method(self, number):
            return self, number

        @classmethod
        @decorate
        def inner_class(cls):
            return cls

        @decorate
        @classmethod
        def outer_class(cls):
            return cls

        @staticmethod
        @decorate
        def inner_static(number):
            return number

        @decorate
        @staticmethod
        def outer_static(number):
            return number

        @property
        @decorate
        def value(self):
            return 7

    class Child(Thing):
        def method(self, number):
            return super().method(number)

    thing, child = Thing(), Child()
    assert thing.method(1) == (thing, 1)
    assert Thing.method(thing, 2) == (thing, 2)
    assert child.method(3) == (child, 3)
    assert Child.inner_class() is Child
    assert child.outer_class() is Child
    assert Thing.inner_static(4) == thing.outer_static(4) == 4
    assert thing.value == 7
    assert str(inspect.signature(thing.method)) == "(number)"


def test_methods_that_a_class_converts_by_itself_are_converted(decorate):
    seen = []

    class Base:
        @decorate
        def __new__(cls, size):
            made = super().__new__(cls)
            made.size = size
            return made

        @decorate
        def __init_subclass__(cls, **options):
            super().__init_subclass__()
            seen.append((cls.__name__, options))

        @decorate
        def __class_getitem__(cls, item):
            return cls.__name__, item

    class Child(Base, tag=1):
        pass

    assert seen == [("Child", {"tag": 1})]
    assert Child[int] == ("Child", int)
    assert Child(3).__new__(Child, 4).size == 4


class Adder:
    def __call__(self, *args):
        return args


class BindingItself:
    """As a compiled method of an extension: it binds, and is no function."""

    def __call__(self, *args):
        return args

    def __get__(self, instance, owner=None):
        return functools.partial(self, "bound") if instance is not None else self


CALLABLES = {
    "function": lambda *args: args,
    "partial": functools.partial(lambda *args: args, 1),
    "builtin": max,
    "operator": operator.add,
    "object": Adder(),
    "bound method": Adder().__call__,
    "cached function": functools.lru_cache(lambda *args: args),
    "object that binds itself": BindingItself(),
    "static method": staticmethod(lambda *args: args),
}


# Python 3.13 says of a partial, decorated or not, that it will bind as a function does in 3.14.
@pytest.mark.filterwarnings("ignore:functools.partial will be a method descriptor:FutureWarning")
@pytest.mark.parametrize("thing", CALLABLES.values(), ids=CALLABLES)
def test_class_attribute_binds_as_it_does_undecorated(decorate, thing):
    class Alone:
        attribute = thing

    class Decorated:
        attribute = decorate(thing)

    def outcome(kind):
        try:
            result = kind().attribute(2, 3)
        except TypeError as error:
            return type(error)
        return tuple(part for part in result if not isinstance(part, kind)) if isinstance(result, tuple) else result

    assert outcome(Decorated) == outcome(Alone)


def test_bound_methods_of_one_object_are_equal(decorate):
    class Thing:
        @decorate
        def method(self):
            return self

        @bounded_history(3, per_instance=True)
        def remembered(self):
            return self

    thing = Thing()

    assert thing.method == thing.method
    assert thing.remembered == thing.remembered
    assert thing.method != Thing().method


def test_other_decorators_work_above_and_below(decorate):
    class Thing(abc.ABC):
        @functools.cached_property
        @decorate
        def cached(self):
            return [1]

        @decorate
        @abc.abstractmethod
        def abstract(self): ...

        @functools.singledispatchmethod
        @decorate
        def dispatched(self, value):
            return "any"

        @dispatched.register
        @decorate
        def _(self, value: int):
            return "int"

    @decorate
    @functools.singledispatch
    def single(value):
        return "any"

    single.register(int, lambda value: "int")

    class Child(Thing):
        def abstract(self):
            return 1

    assert Thing.__abstractmethods__ == {"abstract"}
    child = Child()
    assert child.cached is child.cached
    assert (child.dispatched("a"), child.dispatched(1)) == ("any", "int")
    assert (single("a"), single(1)) == ("any", "int")
    assert mock.create_autospec(plain)(1, 2) is not None
    with pytest.raises(TypeError):
        mock.create_autospec(decorate(plain))(1, 2, 3, 4)


def test_annotations_that_are_text_are_found(decorate):
    namespace = {"__name__": "annotated"}
    exec("class Item: pass\ndef make(item: 'Item') -> 'Item': return item", namespace)
    decorated = decorate(namespace["make"])

    assert typing.get_type_hints(decorated) == {"item": namespace["Item"], "return": namespace["Item"]}
    assert decorated.__globals__ is namespace
    assert isinstance(decorated, types.FunctionType)


@pytest.mark.parametrize("meter", ["native", "tracemalloc", "rss"])
@pytest.mark.parametrize(
    "make",
    [
        profile_memory,  # the other two are made in the same way
        pytest.param(lambda **options: memory_budget("1 GiB", **options), marks=pytest.mark.once),
        pytest.param(bounded_history, marks=pytest.mark.once),
    ],
)
def test_recursion_is_as_deep_as_under_functools_wraps(make, meter):
    def recursive(decorator):
        @decorator
        def depth(left):
            return 0 if left == 0 else 1 + depth(left - 1)

        return depth

    def wraps(function):
        @functools.wraps(function)
        def call(*args):
            return function(*args)

        return call

    wrapped = _deepest(recursive(wraps))

    assert (
        _deepest(recursive(make(meter=meter) if make is not bounded_history else make(3, meter=meter))) > wrapped - 20
    )


def _deepest(function):
    reached, refused = 1, sys.getrecursionlimit()
    while refused - reached > 1:
        middle = (reached + refused) // 2
        try:
            function(middle)
        except RecursionError:
            refused = middle
        else:
            reached = middle
    return reached


def test_figures_of_functions_of_one_name_stay_apart():
    def make(size):
        @profile_memory
        def f():
            block = bytearray(size)
            yield len(block)

        return f

    def make_async(size):
        @profile_memory
        async def f():
            block = bytearray(size)
            await asyncio.sleep(0)
            return len(block)

        return f

    idle, busy = make(10), make(7_000_000)
    running = busy()
    next(running)
    idle_async, busy_async = make_async(10), make_async(7_000_000)
    awaited = busy_async()
    awaited.send(None)

    for one, other in ((idle, busy), (idle_async, busy_async)):
        assert (one.memory.statistics().active, one.memory.statistics().live_bytes) == (0, 0)
        assert other.memory.statistics().active == 1
        assert other.memory.statistics().live_bytes > 7_000_000
    running.close()
    awaited.close()


async def test_bound_coroutine_method_is_a_coroutine_function(decorate):
    class Thing:
        @decorate
        async def method(self):
            return self

    thing = Thing()

    assert inspect.iscoroutinefunction(thing.method)
    assert await thing.method() is thing


def test_stacked_decorators_each_record_every_call():
    @profile_memory
    @bounded_history(5)
    @memory_budget("1 GiB")
    def work():
        return 1

    work()
    work()

    assert work.memory.statistics().calls == 2
    assert len(work.history) == 2


@pytest.mark.parametrize("meter", ["rss", "tracemalloc"])
async def test_call_through_stacked_decorators_counts_once_in_accounts(meter):
    @profile_memory(meter=meter)
    @bounded_history(5, meter=meter)
    @memory_budget("1 GiB", meter=meter)
    async def stacked(depth):
        if depth:
            await stacked(depth - 1)

    forget_accounts()
    await stacked(2)
    await stacked(0)

    entry = next(entry for entry in statistics().accounts if entry.name == stacked.memory.statistics().name)
    assert (entry.started, entry.active, entry.failed) == (4, 0, 0)
    assert stacked.memory.statistics().calls == len(stacked.history) == 4


def test_decorated_function_is_pickled_and_copied_by_reference():
    assert pickle.loads(pickle.dumps(module_level)) is module_level
    assert copy.copy(module_level) is module_level
    assert copy.deepcopy({"job": module_level})["job"] is module_level
    assert pickle.loads(pickle.dumps(Holder.method)) is Holder.method
    assert pickle.loads(pickle.dumps(Holder().method))() == 41


def test_decorator_disabled_by_argument_returns_bare_function():
    assert profile_memory(enabled=False)(plain) is plain
    assert memory_budget(1, enabled=False)(plain) is plain
    assert bounded_history(5, enabled=False)(plain) is plain
    assert plain.memory.statistics().calls == 0
    assert list(plain.history) == []
    del plain.memory, plain.history


@pytest.mark.parametrize("value", ["0", "false", "No", "off"])
def test_decorator_disabled_by_environment_returns_bare_function(monkeypatch, value):
    monkeypatch.setenv("MEMTOOLS_ENABLED", value)

    assert memory_budget(1)(plain) is plain


def test_memtools_enabled_with_invalid_value_raises_config_error(monkeypatch):
    monkeypatch.setenv("MEMTOOLS_ENABLED", "perhaps")

    with pytest.raises(ConfigError, match=r"MEMTOOLS_ENABLED='perhaps'.*1.*0"):
        memory_budget(1)(plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: profile_memory(sample_every=0), "sample_every=0"),
        (lambda: profile_memory(sample_every=True), "sample_every=True"),
        (lambda: profile_memory(sample_every=1.5), "sample_every=1.5"),
        (lambda: profile_memory(name=""), "name=''"),
        (lambda: profile_memory(log="loud"), "log='loud'"),
        (lambda: profile_memory(meter="exact"), "meter='exact'.*tracemalloc.*rss"),
        (lambda: profile_memory(int), "function=<class 'int'>"),
        (lambda: profile_memory()(3), "function=3"),
        (lambda: memory_budget("512Mb"), "budget='512Mb'.*512 MiB"),
        (lambda: memory_budget("120%"), "budget='120%'.*100%"),
        (lambda: memory_budget(-1), "budget=-1"),
        (lambda: memory_budget(float("nan")), "budget=nan"),
        (lambda: memory_budget(True), "budget=True"),
        (lambda: memory_budget(plain), "budget=<function plain"),
        (lambda: memory_budget(1, measure="best"), "measure='best'.*peak.*retained.*rss"),
        (lambda: memory_budget(1, on_exceed="shout"), "on_exceed='shout'"),
        (lambda: memory_budget(1, sample_every=0), "sample_every=0"),
        (lambda: bounded_history(0), "maxlen=0"),
        (lambda: bounded_history(True), "maxlen=True"),
        (lambda: bounded_history("10"), "maxlen='10'"),
        (lambda: bounded_history(10, keep=11), "keep=11"),
        (lambda: bounded_history(10, keep=-1), "keep=-1"),
        (lambda: bounded_history(10, key=3), "key=3"),
        (lambda: bounded_history(10, key=len, per_instance=True), "per_instance=True"),
        (lambda: bounded_history(10, keep_results=True)(lambda: (yield)), "keep_results=True"),
    ],
)
def test_invalid_argument_of_a_decorator_raises_config_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


async def test_arguments_of_a_running_coroutine_are_not_kept_alive(decorate):
    class Big:
        pass

    @decorate
    async def work(big):
        alive = weakref.ref(big)
        del big
        await asyncio.sleep(0)
        return alive()

    assert await work(Big()) is None


async def test_cancellation_passes_through_and_stays_balanced(decorate):
    @decorate
    async def work():
        await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()

    async def outer():
        try:
            async with asyncio.timeout(0):
                await work()
        except TimeoutError:
            return asyncio.current_task().cancelling()

    assert await outer() == 0


async def test_failed_call_keeps_no_frame_alive(decorate):
    class Local:
        pass

    @decorate
    async def work(refs):
        local = Local()
        refs.append(weakref.ref(local))
        await asyncio.sleep(0)
        raise ValueError

    @decorate
    def work_plainly(refs):
        local = Local()
        refs.append(weakref.ref(local))
        raise ValueError

    refs = []
    gc.disable()
    try:
        for _ in range(10):
            with contextlib.suppress(ValueError):
                await work(refs)
            with contextlib.suppress(ValueError):
                work_plainly(refs)
        alive = sum(ref() is not None for ref in refs)
    finally:
        gc.enable()

    assert alive == 0


def test_unawaited_coroutine_warns_once_with_the_functions_name(decorate):
    @decorate
    async def forgotten():
        pass

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forgotten()
        gc.collect()

    assert [str(warning.message) for warning in caught] == [f"coroutine '{forgotten.__qualname__}' was never awaited"]


def test_call_that_fails_over_budget_raises_its_own_exception():
    @memory_budget(0, meter="tracemalloc")
    def work():
        kept = bytearray(100_000)
        raise LookupError(len(kept))

    with pytest.raises(LookupError):
        work()

    @memory_budget(0, meter="tracemalloc")
    def quiet():
        return bytearray(100_000)

    with pytest.raises(BudgetExceeded):
        quiet()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="functions can be marked since Python 3.12")
async def test_marked_coroutine_function_may_return_any_awaitable(decorate):
    def promises(value):
        future = asyncio.get_running_loop().create_future()
        future.set_result(value)
        return future

    promises = decorate(inspect.markcoroutinefunction(promises))

    @profile_memory
    async def below():
        return await promises(2)

    assert await promises(1) == 1
    assert await below() == 2


def test_first_call_under_a_fake_file_system_works():
    # In a process of its own: whatever a first call needs has not been read before.
    program = """
from pyfakefs.fake_filesystem_unittest import Patcher
from memtools import bounded_history, memory_budget, profile_memory
decorators = profile_memory, memory_budget("1 MiB"), bounded_history
loads = [decorate(lambda: len(bytearray(1000))) for decorate in decorators]
with Patcher():
    print([load() for load in loads])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)

    assert done.stdout == "[1000, 1000, 1000]\n", done.stderr


def test_wrapt_is_loaded_for_callables_that_are_no_functions():
    program = """
import sys
from memtools import bounded_history, memory_budget, memory_scope, profile_memory
profile_memory(enabled=False)(len)
print("wrapt" in sys.modules, end=" ")
memory_budget("1 MiB")(lambda: 1)
print("wrapt" in sys.modules, end=" ")
memory_budget("1 MiB")(len)
print("wrapt" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == "False False True\n"
