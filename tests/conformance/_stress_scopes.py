"""Programs with scopes and tasks, and claims about their figures that hold under any concurrent load."""

import asyncio
import gc
import json
import sys
import threading
from collections import deque
from collections.abc import Callable
from random import Random

from memtools.decorators import memory_budget
from memtools.errors import BudgetExceeded
from memtools.ledger import Owner, bind_to_current, choose_meter, statistics
from memtools.ledger._ledger import close_owner, current_usage, open_owner
from memtools.scopes import _budgets, memory_scope, task_scope

try:
    import numpy
except ImportError:
    numpy = None

SLACK = 100_000  # frames, free lists, caches of the interpreter's own
KIB = 1024


class KeptObjects:
    """Objects from closed scopes, by owner; any later program frees them."""

    def __init__(self) -> None:
        self.kept: deque[tuple[Owner, int, object]] = deque(maxlen=200)
        self.owners: deque[Owner] = deque(maxlen=500)

    def keep(self, owner: Owner, min_bytes: int, made: object) -> None:
        """Keep an object that holds at expected so many bytes of the owner."""
        self.owners.append(owner)
        self.kept.append((owner, min_bytes, made))

    def check(self) -> None:
        """Check that owners hold what is kept, and nothing once all is freed; at a quiet moment."""
        expected: dict[int, int] = {}
        for kept in self.kept:
            expected[id(kept[0])] = expected.get(id(kept[0]), 0) + kept[1]
        for kept in self.kept:
            live = kept[0].live_bytes
            assert live is not None
            assert live >= expected[id(kept[0])], (live, expected[id(kept[0])])
        kept = None
        self.kept.clear()
        gc.collect()
        for owner in self.owners:
            live = owner.live_bytes
            assert live is not None
            assert live < SLACK, f"{owner.name} holds {live:,} bytes that are not reachable"
        self.owners.clear()


class Cycle:
    """Garbage for the collector, with a finaliser that allocates."""

    def __init__(self, size: int) -> None:
        self.itself = self
        self.block = bytearray(size)

    def __del__(self) -> None:
        self.block = [str(number) for number in range(10)]


def make_object(rng: Random) -> tuple[int, object]:
    """Return how many bytes an object holds at least, and the object."""
    count = rng.randrange(1, 200)
    kind = rng.randrange(9)
    if kind == 0:
        return 100 * count, bytearray(100 * count)
    if kind == 1:
        return 0, {number: str(number) for number in range(1000, 1000 + count)}
    if kind == 2:
        return 0, [(number, [number]) for number in range(count)]
    if kind == 3:
        grown = bytearray()
        for _ in range(count):
            grown.extend(b"x" * 100)
        del grown[50 * count :]
        return 50 * count, grown
    if kind == 4:
        grown_list = list(range(count))
        for _ in range(count):
            grown_list.append(grown_list.pop() if rng.random() < 0.5 else [])
        return 8 * count, grown_list
    if kind == 5:
        return 0, json.loads(json.dumps([{"id": number, "name": f"name {number}"} for number in range(count)]))
    if kind == 6:
        return 0, Cycle(count)
    if kind == 7:
        return 0, {frozenset({number, str(number)}) for number in range(count)}
    return count * 1000, bytes(count * 1000)


def nested_scopes(rng: Random, kept_objects: KeptObjects) -> None:
    """Open scopes inside scopes, make objects in each, keep some."""
    depth = rng.randrange(1, 5)

    def descend(left: int) -> None:
        with memory_scope(f"depth {left}", meter="native") as opened:
            made = [make_object(rng) for _ in range(rng.randrange(4))]
            if left:
                descend(left - 1)
            if made and rng.random() < 0.5:
                kept_objects.keep(opened.owner, *made[-1])
            del made
        usage = opened.usage
        # Another program's call in a pool has no owner if its owner ends before it begins.
        assert usage.exact or "threads of a pool" in usage.note, usage.note
        assert usage.peak_bytes >= usage.retained_bytes
        assert usage.allocated_bytes is not None
        assert usage.allocated_bytes >= usage.peak_bytes

    descend(depth)


def owners_out_of_order(rng: Random, kept_objects: KeptObjects) -> None:
    """Open a chain of owners and close them in any order."""
    meter = choose_meter("native")
    opened = []
    for number in range(rng.randrange(1, 6)):
        owner = open_owner(f"link {number}", "scope", meter=meter)
        opened.append(owner)
        kept_objects.keep(owner, *make_object(rng))
    rng.shuffle(opened)
    for owner in opened:
        close_owner(owner, failed=rng.random() < 0.5)
        current_usage(owner)


def tasks(rng: Random, kept_objects: KeptObjects) -> None:
    """Run a loop with tasks that have scopes; some fail, some are cancelled."""

    @memory_budget("100 MiB", meter="native")
    async def step(left: int) -> None:
        kept = [make_object(rng)]
        await asyncio.sleep(0)
        if left:
            await step(left - 1)
        if rng.random() < 0.1:
            raise KeyError(left)
        await asyncio.to_thread(bind_to_current(lambda: kept.append(make_object(rng))))

    async def main() -> None:
        async with task_scope(on_error="record", max_running=rng.choice([2, 50]), meter="native") as scope:
            running = [await scope.spawn(step(rng.randrange(3)), name="step") for _ in range(rng.randrange(1, 8))]
            await asyncio.sleep(0)
            rng.choice(running).cancel()

    asyncio.run(main())


def runaway(rng: Random, kept_objects: KeptObjects) -> None:
    """Exceed a budget; it has to be raised, in flight or at the end, and nowhere but inside the block."""
    limit = rng.choice([200, 2_000]) * KIB
    try:
        with memory_scope("runaway", meter="native", budget=limit):
            kept: list[object] = []
            for number in range(4 * limit // 1000):
                kept.append(rng.choice([bytes, bytearray])(1000))
                if number % 100 == 0:
                    kept.append({number: [number]})
    except BudgetExceeded as error:
        raised = error
    else:
        raise AssertionError("no error was raised for the exceeded budget")
    assert raised.scope == "runaway"
    assert raised.used_bytes > raised.budget_bytes == limit


def denied(rng: Random, kept_objects: KeptObjects) -> None:
    """Ask for a block that is far too large and is refused; small blocks are not."""
    if sys.version_info[:2] in _budgets._HARMED_BY_REFUSALS:
        return  # no block is refused on a Python that does not survive it
    limit = rng.choice([200, 2_000]) * KIB
    too_large = 2 * max(limit, 1024 * KIB)  # no block below 1 MiB is refused
    with memory_scope("denied", meter="native", budget=limit, on_exceed="deny") as opened:
        kept = [bytes(1000) for _ in range(rng.randrange(50))]
        for make in (bytes, bytearray, lambda size: [None] * (size // 8)):
            try:
                kept.append(make(too_large))
            except MemoryError:
                continue
            raise AssertionError("a block beyond the budget was made")
        kept.clear()
        kept_objects.keep(opened.owner, *make_object(rng))
    assert opened.usage.peak_bytes < limit


def arrays(rng: Random, kept_objects: KeptObjects) -> None:
    """Make, count and resize numpy arrays, if numpy is installed; another program frees them."""
    if numpy is None:
        return
    with memory_scope("arrays", meter="native") as opened:
        size = rng.randrange(1, 50_000)
        made = rng.choice([numpy.zeros, numpy.ones])(size)
        doubled = made * 2
        doubled.resize(size * 2, refcheck=False)
        kept_objects.keep(opened.owner, 16 * size, doubled)
    assert opened.usage.peak_bytes >= 24 * size, opened.usage


def short_threads(rng: Random, kept_objects: KeptObjects) -> None:
    """Start threads that begin and end while the other programs run."""
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            nested_scopes(Random(seed), kept_objects)
        except BaseException as error:
            failed.append(error)

    started = [threading.Thread(target=work, args=(rng.random(),)) for _ in range(rng.randrange(1, 5))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if failed:
        raise failed[0]


def readings(rng: Random, kept_objects: KeptObjects) -> None:
    """Read figures while other threads change them."""
    statistics()
    for owner in list(kept_objects.owners)[-5:]:
        assert owner.live_bytes is not None
    if rng.random() < 0.2:
        gc.collect()


ACTS: tuple[Callable[[Random, KeptObjects], None], ...] = (
    nested_scopes, nested_scopes, owners_out_of_order, tasks, short_threads, readings, denied, arrays,
)  # fmt: skip
