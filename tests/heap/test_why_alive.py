"""The holders that `why_alive` names for common leaks."""

import asyncio
import contextvars
import functools
import gc
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from memtools.errors import ConfigError
from memtools.heap import WhyAlive, growth_between, heap_census, why_alive, why_alive_async

registry: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def empty_registry() -> Iterator[None]:
    registry.clear()
    yield
    registry.clear()


class Service:
    prices: ClassVar[dict[str, list[int]]] = {}

    def __init__(self) -> None:
        self.orders: dict[str, list[int]] = {}

    @functools.cache  # noqa: B019  # the leak that the test finds
    def area(self, side: int) -> list[int]:
        return [side * side]


class Slotted:
    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: list[list[int]] = []


def test_global_is_named_with_its_module() -> None:
    registry["nightly"] = target = [1]

    assert str(why_alive(target, show_values=True)) == f"list (1 alive) <- dict['nightly'] <- {__name__}.registry"


def test_attribute_is_named_with_its_class() -> None:
    service = registry["service"] = Service()
    service.orders["AAPL"] = target = [1]

    holders = why_alive(target, show_values=True).paths[0].holders

    assert holders[:3] == ("dict['AAPL']", f"{__name__}.Service.orders", "dict['service']")


def test_slot_is_named() -> None:
    slotted = registry["slotted"] = Slotted()
    slotted.rows.append(target := [1])

    assert why_alive(target).paths[0].holders[:2] == ("list[0]", f"{__name__}.Slotted.rows")


def test_class_attribute_is_named() -> None:
    Service.prices["AAPL"] = target = [1]
    try:
        answer = why_alive(target, show_values=True)
    finally:
        Service.prices.clear()

    assert answer.paths[0].holders == ("dict['AAPL']", f"class {__name__}.Service.prices")


def test_cache_on_a_method_has_a_hint() -> None:
    service = Service()
    target = service.area(3)

    answer = why_alive(target)
    Service.area.cache_clear()

    assert answer.paths[0].holders[1:] == ("lru_cache wrapper of Service.area", f"class {__name__}.Service.area")
    assert "lru_cache on a method keeps self" in answer.hint


def test_closure_is_named_with_its_variable() -> None:
    def make() -> Callable[[int], list[int]]:
        seen: dict[int, list[int]] = {}

        def remember(number: int) -> list[int]:
            return seen.setdefault(number, [number])

        return remember

    registry["remember"] = remember = make()
    target = remember(7)

    holders = why_alive(target, show_values=True).paths[0].holders

    assert holders[0] == "dict[7]"
    assert holders[1].startswith("closure of function")
    assert holders[1].endswith(", variable seen")


def test_default_of_a_function_is_named() -> None:
    def collect(row: int, rows: list[list[int]] = []) -> list[list[int]]:  # noqa: B006  # the leak that the test finds
        rows.append([row])
        return rows

    registry["collect"] = collect
    target = collect(1)[0]

    assert "collect, a default" in str(why_alive(target))


async def test_stuck_task_is_named_with_its_line_and_variable() -> None:
    class Order: ...

    never = asyncio.Event()

    async def wait() -> None:
        order = Order()
        await never.wait()
        del order

    tasks = [asyncio.create_task(wait(), name=f"order {number}") for number in range(5)]
    await asyncio.sleep(0)

    answer = why_alive(Order)
    never.set()
    await asyncio.gather(*tasks)

    assert answer.alive == 5
    assert len(answer.paths) == 1
    assert answer.paths[0].count == 5
    assert "coroutine test_stuck_task" in str(answer)
    assert "variable order" in str(answer)


async def test_task_is_named() -> None:
    never = asyncio.Event()
    task = asyncio.create_task(never.wait(), name="price feed")
    await asyncio.sleep(0)

    answer = why_alive(task)
    never.set()
    await task

    assert "task 'price feed'" in str(answer)


async def test_timer_is_found_as_holder() -> None:
    payload = [1]
    handle = asyncio.get_running_loop().call_later(3600, print, payload)
    holder = weakref.ref(handle)
    reference = payload
    del payload, reference

    found = await why_alive_async(handle)
    handle.cancel()

    assert holder() is not None
    assert "_scheduled" in str(found) or "Handle" in str(found)


def test_unbounded_queue_has_a_hint() -> None:
    backlog: queue.Queue[list[int]] = queue.Queue()
    registry["backlog"] = backlog
    backlog.put(target := [1])

    answer = why_alive(target)

    assert "queue.Queue.queue" in str(answer)
    assert "maxsize" in answer.hint


def test_kept_exception_is_named_with_its_frame() -> None:
    class Order: ...

    def fail() -> None:
        order = Order()
        raise ValueError(id(order))

    failures: list[BaseException] = registry.setdefault("failures", [])
    for _ in range(3):
        try:
            fail()
        except ValueError as error:
            failures.append(error)

    answer = why_alive(Order)

    assert answer.alive == 3
    assert "frame of" in str(answer)
    assert "fail" in str(answer)


def test_logging_handler_has_a_path() -> None:
    logger = logging.getLogger("memtools.tests.heap")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    try:
        answer = why_alive([handler][0])
    finally:
        logger.removeHandler(handler)

    assert answer.paths


def test_thread_is_named_with_its_running_function() -> None:
    started, release = threading.Event(), threading.Event()

    class Order: ...

    def work() -> None:
        order = Order()
        started.set()
        release.wait()
        del order

    thread = threading.Thread(target=work, name="importer")
    thread.start()
    started.wait()
    try:
        answer = why_alive(Order)
    finally:
        release.set()
        thread.join()

    assert "frame of" in str(answer)
    assert "work" in str(answer)
    assert "variable order" in str(answer)


def test_context_is_named_as_holder() -> None:
    variable: contextvars.ContextVar[list[int]] = contextvars.ContextVar("request")
    context = registry["context"] = contextvars.copy_context()
    target = [1]
    context.run(variable.set, target)

    assert "Context" in str(why_alive(target))


def test_variable_of_the_caller_is_named() -> None:
    mine = [1]

    answer = why_alive(mine)

    assert "variable mine" in str(answer)
    assert answer.paths[0].is_rooted


def test_cycle_without_a_root_has_a_hint() -> None:
    class Node: ...

    gc.collect()
    gc.disable()
    try:
        node = Node()
        node.itself = node  # type: ignore[attr-defined]
        del node
        answer = why_alive(Node)
    finally:
        gc.enable()
        gc.collect()

    assert answer.alive == 1
    assert not answer.paths[0].is_rooted
    assert "the garbage collector is off" in answer.hint


def test_paths_that_differ_in_a_key_only_are_grouped() -> None:
    class Order: ...

    book = registry["book"] = {f"AAPL {number}": Order() for number in range(50)}

    answer = why_alive(Order, samples=10)

    assert len(book) == answer.alive == 50
    assert [path.count for path in answer.paths] == [10]
    assert answer.paths[0].holders[-1] == f"{__name__}.registry"


def test_class_without_instances_has_no_paths() -> None:
    class Order: ...

    answer = why_alive(Order)

    assert answer.paths == ()
    assert "no such object is alive" in str(answer)


def test_growth_has_rate_example_and_root() -> None:
    orders: dict[str, list[int]] = registry.setdefault("orders", {})
    orders.update({f"old {number}": [number] for number in range(100)})
    first = heap_census()
    orders.update({f"new {number}": [number] for number in range(500)})

    (grown,) = [growth for growth in growth_between(first, heap_census()) if growth.address == id(orders)]
    answer = why_alive(grown, show_values=True)

    assert answer.example == "'new 499': list"
    assert str(answer).startswith("dict +")
    assert str(answer).endswith(f"(600 now) <- dict['orders'] <- {__name__}.registry")


def test_growth_of_a_deleted_container_has_no_paths() -> None:
    rows = [[number] for number in range(100)]
    first = heap_census()
    rows.extend([number] for number in range(100))
    (grown,) = [growth for growth in growth_between(first, heap_census()) if growth.address == id(rows)]
    del rows

    assert why_alive(grown).paths == ()


def test_timeout_gives_an_incomplete_answer() -> None:
    target = [1]
    deep: Any = target
    for _ in range(8):
        deep = [deep]
    registry["deep"] = deep

    answer = why_alive(target, timeout=0)

    assert isinstance(answer, WhyAlive)
    assert not answer.is_complete
    assert "time ran out" in str(answer)


@pytest.mark.parametrize("samples", [0, 25, -1, True, "3"])
def test_invalid_samples_are_refused(samples: Any) -> None:
    with pytest.raises(ConfigError, match="samples"):
        why_alive(Service, samples=samples)


async def test_why_alive_async_lets_other_tasks_run() -> None:
    registry["deep"] = [[[[target := [1]]]]]
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    answer = await why_alive_async(target)
    task.cancel()

    assert answer.paths[0].is_rooted
    assert turns > 1


def test_control_characters_in_names_and_keys_are_escaped() -> None:
    cls = type("Order\x1b[31m", (), {})
    registry["\u202egnp"] = target = cls()

    text = str(why_alive(target, show_values=True))

    assert "Order\\x1b[31m (1 alive) <- dict['\\u202egnp']" in text
    assert text.isprintable()


def test_keys_are_not_shown_by_default() -> None:
    tokens: dict[object, list[int]] = registry.setdefault("tokens", {})
    for key in ("s3cret-token", b"s3cret-token", 4111111111111111, ("s3cret-token", 4111111111111111)):
        tokens[key] = target = [1]

        text = str(why_alive(target))

        assert "dict[<" in text or "dict[(<" in text
        assert "s3cret" not in text
        assert "4111" not in text


def test_newest_item_is_not_shown_by_default() -> None:
    emails: list[str] = registry.setdefault("emails", [])
    emails.extend(["ada@example.org"] * 100)
    first = heap_census()
    emails.extend(["ada@example.org"] * 100)

    (grown,) = [growth for growth in growth_between(first, heap_census()) if growth.address == id(emails)]

    assert why_alive(grown).example == "<str, 15 characters>"


def test_attribute_that_no_code_could_spell_is_not_shown() -> None:
    registry["session"] = session = Service()
    setattr(session, "token s3cret", target := [1])

    assert "s3cret" not in str(why_alive(target))


def test_variable_of_executed_code_is_named() -> None:
    namespace: dict[str, Any] = {}
    exec("class Held: ...\nkept = Held()", namespace)
    held = namespace["kept"]

    answer = str(why_alive(held))

    assert "'kept'" in answer
    del namespace["kept"]
