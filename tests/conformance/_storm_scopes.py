"""What programs do under scopes and tasks, with claims about their figures that hold whatever else goes on.

Covers: objects of every kind in nested scopes, owners that end out of order or are dropped, tasks, budgets, cycles.
Leaves to others: exact figures (`_storm_books`), threads, forks and the end of the process (`native_storm`).
"""

import asyncio
import gc
import json
import threading
from collections import deque
from collections.abc import Callable
from random import Random

from memtools.decorators import memory_budget
from memtools.errors import BudgetExceeded
from memtools.ledger import Owner, bind_to_current, choose_meter, statistics
from memtools.ledger._ledger import close_owner, current_usage, open_owner
from memtools.scopes import memory_scope, task_scope

try:
    import numpy
except ImportError:
    numpy = None

SLACK = 100_000  # frames, free lists, caches of the interpreter's own
KIB = 1024


class Hoard:
    """What was made in scopes, by owner; whoever comes next frees it."""

    def __init__(self) -> None:
        self.kept: deque[tuple[Owner, int, object]] = deque(maxlen=200)
        self.watched: deque[Owner] = deque(maxlen=500)

    def keep(self, owner: Owner, least: int, thing: object) -> None:
        """Keep a thing that holds at least so many bytes of the owner's."""
        self.watched.append(owner)
        self.kept.append((owner, least, thing))

    def check(self) -> None:
        """See that owners hold what is kept, and nothing when all has gone; for a quiet moment."""
        least: dict[int, int] = {}
        for kept in self.kept:
            least[id(kept[0])] = least.get(id(kept[0]), 0) + kept[1]
        for kept in self.kept:
            live = kept[0].live_bytes
            assert live is not None
            assert live >= least[id(kept[0])], (live, least[id(kept[0])])
        kept = None
        self.kept.clear()
        gc.collect()
        for owner in self.watched:
            live = owner.live_bytes
            assert live is not None
            assert live < SLACK, f"{owner.name} holds {live:,} bytes that nobody can reach"
        self.watched.clear()


class Knot:
    """Garbage for the collector, with a finaliser that allocates."""

    def __init__(self, size: int) -> None:
        self.itself = self
        self.block = bytearray(size)

    def __del__(self) -> None:
        self.block = [str(number) for number in range(10)]


def stuff(rng: Random) -> tuple[int, object]:
    """Return something, and how many bytes it certainly holds."""
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
        return 0, Knot(count)
    if kind == 7:
        return 0, {frozenset({number, str(number)}) for number in range(count)}
    return count * 1000, bytes(count * 1000)


def nested_scopes(rng: Random, hoard: Hoard) -> None:
    """Open scopes inside scopes, make things in each, keep some."""
    depth = rng.randrange(1, 5)

    def descend(left: int) -> None:
        with memory_scope(f"depth {left}", meter="native") as opened:
            made = [stuff(rng) for _ in range(rng.randrange(4))]
            if left:
                descend(left - 1)
            if made and rng.random() < 0.5:
                hoard.keep(opened.owner, *made[-1])
            del made
        usage = opened.usage
        assert usage.exact, usage.note
        assert usage.peak_bytes >= usage.retained_bytes
        assert usage.allocated_bytes is not None
        assert usage.allocated_bytes >= usage.peak_bytes

    descend(depth)


def owners_out_of_order(rng: Random, hoard: Hoard) -> None:
    """Open a chain of owners and end them in any order; some are never ended but by the last."""
    meter = choose_meter("native")
    opened = []
    for number in range(rng.randrange(1, 6)):
        owner = open_owner(f"link {number}", "scope", meter=meter)
        opened.append(owner)
        hoard.keep(owner, *stuff(rng))
    rng.shuffle(opened)
    for owner in opened:
        close_owner(owner, failed=rng.random() < 0.5)
        current_usage(owner)


def tasks(rng: Random, hoard: Hoard) -> None:
    """Run a loop with tasks under scopes of theirs; some fail, some are cancelled."""

    @memory_budget("100 MiB", meter="native")
    async def step(left: int) -> None:
        kept = [stuff(rng)]
        await asyncio.sleep(0)
        if left:
            await step(left - 1)
        if rng.random() < 0.1:
            raise KeyError(left)
        await asyncio.to_thread(bind_to_current(lambda: kept.append(stuff(rng))))

    async def main() -> None:
        async with task_scope(on_error="record", max_running=rng.choice([2, 50]), meter="native") as scope:
            running = [await scope.spawn(step(rng.randrange(3)), name="step") for _ in range(rng.randrange(1, 8))]
            await asyncio.sleep(0)
            rng.choice(running).cancel()

    asyncio.run(main())


def runaway(rng: Random, hoard: Hoard) -> None:
    """Cross a budget; it has to be told, in flight or at the end, and nowhere but inside the block."""
    limit = rng.choice([200, 2_000]) * KIB
    try:
        with memory_scope("runaway", meter="native", budget=limit):
            kept: list[object] = []
            for number in range(4 * limit // 1000):
                kept.append(rng.choice([bytes, bytearray])(1000))
                if number % 100 == 0:
                    kept.append({number: [number]})
    except BudgetExceeded as error:
        told = error
    else:
        raise AssertionError("nobody was told that the budget was exceeded")
    assert told.scope == "runaway"
    assert told.used_bytes > told.budget_bytes == limit


def denied(rng: Random, hoard: Hoard) -> None:
    """Ask for one large block too many, which is not made; what is small is, and nobody is stopped for it."""
    limit = rng.choice([200, 2_000]) * KIB
    with memory_scope("denied", meter="native", budget=limit, on_exceed="deny") as opened:
        kept = [bytes(1000) for _ in range(rng.randrange(50))]
        for make in (bytes, bytearray, lambda size: [None] * (size // 8)):
            try:
                kept.append(make(limit * 2))
            except MemoryError:
                continue
            raise AssertionError("a block beyond the budget was made")
        kept.clear()
        hoard.keep(opened.owner, *stuff(rng))
    assert opened.usage.peak_bytes < limit


def arrays(rng: Random, hoard: Hoard) -> None:
    """Make arrays of numpy's, where it is there: counted, resized, freed by whoever comes next."""
    if numpy is None:
        return
    with memory_scope("arrays", meter="native") as opened:
        size = rng.randrange(1, 50_000)
        made = rng.choice([numpy.zeros, numpy.ones])(size)
        doubled = made * 2
        doubled.resize(size * 2, refcheck=False)
        hoard.keep(opened.owner, 16 * size, doubled)
    assert opened.usage.peak_bytes >= 24 * size, opened.usage


def short_threads(rng: Random, hoard: Hoard) -> None:
    """Start threads that begin and end in the middle of it all."""
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            nested_scopes(Random(seed), hoard)
        except BaseException as error:
            failed.append(error)

    started = [threading.Thread(target=work, args=(rng.random(),)) for _ in range(rng.randrange(1, 5))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if failed:
        raise failed[0]


def questions(rng: Random, hoard: Hoard) -> None:
    """Ask for figures while others change them."""
    statistics()
    for owner in list(hoard.watched)[-5:]:
        assert owner.live_bytes is not None
    if rng.random() < 0.2:
        gc.collect()


ACTS: tuple[Callable[[Random, Hoard], None], ...] = (
    nested_scopes, nested_scopes, owners_out_of_order, tasks, short_threads, questions, denied, arrays,
)  # fmt: skip
