"""Inspected objects: none of their code runs, and none of them is kept alive."""

import functools
import gc
import sys
import threading
import weakref
from collections import OrderedDict, deque
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest

from memtools.heap import growth_between, heap_census, why_alive

_touched: list[str] = []


def _trap(name: str) -> Any:
    def touch(*args: object, **_: object) -> Any:
        # Only while the heap is inspected: the test itself builds and drops these objects.
        if _armed.is_set():
            _touched.append(name)
        return NotImplemented

    return touch


_armed = threading.Event()
_NAMES = [
    *(
        "__repr__",
        "__str__",
        "__eq__",
        "__ne__",
        "__lt__",
        "__hash__",
        "__len__",
        "__iter__",
        "__contains__",
        "__bool__",
    ),
    *("__getattribute__", "__getattr__", "__getitem__", "__reversed__", "__format__", "__sizeof__", "__dir__"),
    *("__reduce_ex__", "__instancecheck__", "__subclasscheck__", "__index__", "__int__", "__call__", "__length_hint__"),
    *("items", "values", "keys", "get", "append", "add", "get_name", "get_coro"),
]


_OF_CLASSES = ("__repr__", "__eq__", "__hash__", "__getattribute__", "__instancecheck__", "__subclasscheck__")


class _Meta(type):
    """A metaclass whose methods are traps."""


def _traps(*bases: type, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: _trap(f"{bases[0].__name__}.{name}") for name in _NAMES if name not in leave}


def _make(*bases: type) -> Any:
    return _Meta("Trapped" + bases[0].__name__.title(), bases, _traps(*bases))


class _Armed:
    def __enter__(self) -> None:
        _touched.clear()
        _armed.set()

    def __exit__(self, *_: object) -> None:
        _armed.clear()


@pytest.fixture
def heap() -> Any:
    """Trapped objects of every kind, which hold each other and are held by a dict."""
    kept: dict[str, Any] = {}
    plain = _make(object)
    for base in (dict, list, set, deque, OrderedDict, str, tuple, Exception, ModuleType):
        cls = _make(base)
        kept[base.__name__] = base.__new__(cls) if base is not ModuleType else ModuleType.__new__(cls, "trapped")
    ModuleType.__init__(kept["module"], "trapped")
    for number in range(200):
        item = object.__new__(plain)
        list.append(kept["list"], [item])
        dict.__setitem__(kept["dict"], number, [item])
        deque.append(kept["deque"], [item])
        OrderedDict.__setitem__(kept["OrderedDict"], number, [item])
        set.add(kept["set"], number)
    object.__setattr__(kept["module"], "kept", [object.__new__(plain)])
    # The metaclass gets its traps last: making a class would already call them.
    for name in _OF_CLASSES:
        setattr(_Meta, name, _trap(f"metaclass.{name}"))
    yield kept
    for name in _OF_CLASSES:
        delattr(_Meta, name)


def test_census_runs_no_code_of_objects(heap: dict[str, Any]) -> None:
    with _Armed():
        counted = heap_census()

    assert _touched == []
    assert id(heap["dict"]) in counted.containers
    assert counted.containers[id(heap["list"])][1] == 200
    assert any(name.endswith("TrappedDict") for name in counted.names.values())


def test_growth_and_why_alive_run_no_code_of_objects(heap: dict[str, Any]) -> None:
    first = heap_census()
    for number in range(200, 300):
        dict.__setitem__(heap["dict"], number, [number])
        list.append(heap["list"], [number])

    with _Armed():
        found = growth_between(first, heap_census())
        answers = [str(why_alive(one)) for one in found]

    assert _touched == []
    assert any("TrappedDict" in answer for answer in answers)
    assert any("TrappedList" in answer for answer in answers)


@pytest.mark.parametrize("kind", ["dict", "list", "deque", "OrderedDict", "set", "str", "tuple", "Exception", "module"])
def test_why_alive_runs_no_code_of_the_target(heap: dict[str, Any], kind: str) -> None:
    target = heap[kind]

    with _Armed():
        answer = why_alive(target)
        text = str(answer)

    assert _touched == []
    assert "dict" in text or "heap" in text


def test_why_alive_runs_no_code_of_holders(heap: dict[str, Any]) -> None:
    kept_in_module = ModuleType.__dict__["__dict__"].__get__(heap["module"])["kept"]
    targets = [dict.__getitem__(heap["dict"], 7), list.__getitem__(heap["list"], 3), kept_in_module]

    with _Armed():
        answers = [str(why_alive(target, show_values=True)) for target in targets]

    assert _touched == []
    assert "TrappedDict[7]" in answers[0]
    assert "TrappedList[3]" in answers[1]


def test_traps_record_calls() -> None:
    cls = _make(object)
    with _Armed(), suppress(TypeError):  # a trap returns no string
        repr(object.__new__(cls))

    assert _touched == ["object.__repr__"]


def test_why_alive_keeps_no_object_alive() -> None:
    class Order: ...

    kept = [Order() for _ in range(100)]
    reference = weakref.ref(kept[-1])

    answer = why_alive(Order)
    direct = why_alive(kept[-1])
    kept.clear()

    assert reference() is None
    assert answer.alive == 100
    assert direct.alive == 1


def test_census_keeps_no_object_alive() -> None:
    class Order: ...

    kept = {number: Order() for number in range(100)}
    reference = weakref.ref(kept[5])
    gc.disable()
    try:
        counted = heap_census()
        kept.clear()

        assert reference() is None
        assert counted.objects > 100
    finally:
        gc.enable()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="since Python 3.13 `f_locals` makes no snapshot")
def test_why_alive_leaves_no_snapshot_of_variables() -> None:
    class Order: ...

    def work() -> bool:
        order = Order()
        why_alive(order)
        reference = weakref.ref(order)
        del order
        return reference() is None

    assert work()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="since Python 3.13 `locals()` is a copy each time")
def test_why_alive_leaves_locals_of_the_program_as_they_were() -> None:
    def work() -> dict[str, object]:
        order = [1]
        mine = locals()
        why_alive(order)
        return mine

    assert work()["order"] == [1]


def test_why_alive_while_another_thread_changes_the_target() -> None:
    stop = threading.Event()
    shared: dict[int, list[int]] = {}

    def churn() -> None:
        number = 0
        while not stop.is_set():
            shared[number % 1000] = [number]
            shared.pop((number * 7) % 1000, None)
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        answers = [why_alive(shared) for _ in range(20)]
    finally:
        stop.set()
        thread.join()

    assert all(answer.paths for answer in answers)


def test_why_alive_does_not_call_a_cached_function() -> None:
    calls: list[int] = []

    @functools.cache
    def slow(number: int) -> list[int]:
        calls.append(number)
        return [number]

    target = slow(3)

    answer = why_alive(target)

    assert "lru_cache wrapper" in str(answer)
    assert calls == [3]
