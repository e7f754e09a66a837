"""Where work is sent: out-of-memory events in a simulation, against turns, chance and always the best; and its price.

Processes tell what they use every two seconds, each at its own moment; a task takes its memory for some seconds and
gives it back. Several callers send tasks; each of them knows what all have told, and what itself has sent since. A task
that finds its process without room for it is an out-of-memory event: it ends there, and does not lower what later tasks
find. A caller to which no process has room keeps its tasks, in order, and asks again a moment later. In the second row
the process that gets a task admits it as well, as by `MemoryMonitor.admit`: there it waits until it fits. The other
three ways keep no task waiting. The seeds are fixed, so that each run gives the same figures, but for the times.

The processes are simulated; what picks them is the `Router` of `Cluster.pick`.
"""

import heapq
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from _compare import Result, print_results

from memtools.cluster import Node
from memtools.cluster._routing import Router
from memtools.readings import Level

MIB: Final = 2**20
LIMIT: Final = 4096 * MIB
TELL_S: Final = 2.0
ASK_S: Final = 0.5  # for which a caller takes what it was told as it was
TARGET_US: Final = 20.0

Choose = Callable[[int], int | None]


@dataclass
class Task:
    """What is to be placed: when it comes, how much it takes, and for how long."""

    at: float
    size: int
    seconds: float


@dataclass
class Outcome:
    """What came of one way of placing."""

    out_of_memory: int = 0
    over: set[int] = field(default_factory=set)
    shares: list[float] = field(default_factory=list)
    longest_wait_s: float = 0.0
    waited: int = 0

    def note_wait(self, now: float, task: Task) -> None:
        """Count a task that begins later than it came."""
        self.waited += 1
        self.longest_wait_s = max(self.longest_wait_s, now - task.at)

    def in_words(self, nodes: int) -> str:
        """Return it as the row of a table."""
        ordered = sorted(self.shares)
        p99 = ordered[int(0.99 * (len(ordered) - 1))]
        return (
            f"{self.out_of_memory:,} | {len(self.over):,} of {nodes:,} | {100 * ordered[-1]:.0f} % | {100 * p99:.0f} % "
            f"| {self.waited:,} | {self.longest_wait_s:.1f} s"
        )


class Fleet:
    """Processes that run what they are sent, and tell what they use."""

    def __init__(self, base: list[int], draw: random.Random, *, admits: bool = False) -> None:
        self.admits = admits
        self.waiting: list[deque[Task]] = [deque() for _ in base]
        self.now = 0.0
        self.base = base
        self.used = list(base)
        self.told = [(draw.uniform(-TELL_S, 0.0), used) for used in base]
        self.outcome = Outcome()
        self._ends: list[tuple[float, int, int]] = []
        self._tells = [(at + TELL_S, number) for number, (at, _) in enumerate(self.told)]
        heapq.heapify(self._tells)

    def advance(self, now: float) -> None:
        """Let time pass, and with it the ends of tasks and the readings."""
        while min(self._next_end(), self._tells[0][0]) <= now:
            if self._next_end() <= self._tells[0][0]:
                self.now, number, size = heapq.heappop(self._ends)
                self.used[number] -= size
                waiting = self.waiting[number]
                while waiting and self.used[number] + waiting[0].size <= LIMIT:
                    self.outcome.note_wait(self.now, waiting[0])
                    self._begin(number, waiting.popleft())
            else:
                at, number = self._tells[0]
                self.told[number] = (at, self.used[number])
                heapq.heapreplace(self._tells, (at + TELL_S, number))
        self.now = now

    def run(self, number: int, task: Task) -> None:
        """Run a task in a process; where that has no room for it, it ends at once."""
        if self.used[number] + task.size <= LIMIT and not self.waiting[number]:
            self._begin(number, task)
        elif self.admits:
            self.waiting[number].append(task)
        else:
            self.outcome.out_of_memory += 1
            self.outcome.over.add(number)
            self.outcome.shares.append((self.used[number] + task.size) / LIMIT)

    def _begin(self, number: int, task: Task) -> None:
        self.used[number] += task.size
        self.outcome.shares.append(self.used[number] / LIMIT)
        heapq.heappush(self._ends, (self.now + task.seconds, number, task.size))

    def nodes(self) -> list[Node]:
        """Return what all have last told, as a caller reads it from the carrier."""
        return [
            Node(str(number), "n", "host", 1, used, LIMIT, LIMIT - used, Level.NORMAL, 0, self.now - at, TELL_S)
            for number, (at, used) in enumerate(self.told)
        ]

    def _next_end(self) -> float:
        return self._ends[0][0] if self._ends else float("inf")


class Caller:
    """One process that sends tasks by the router of memtools, and keeps those for which there is no room."""

    def __init__(self, fleet: Fleet, draw: random.Random) -> None:
        self.fleet = fleet
        self.router = Router(clock=lambda: fleet.now, draw=draw.random)
        self.kept: deque[Task] = deque()
        self.asked_at = -ASK_S

    def send(self, task: Task) -> None:
        """Send it, after those that are kept."""
        self.kept.append(task)
        self.send_kept()

    def send_kept(self) -> None:
        """Send what is kept, as far as there is room for it."""
        fleet = self.fleet
        if fleet.now - self.asked_at >= ASK_S:
            self.router.update(fleet.nodes())
            self.asked_at = fleet.now
        while self.kept:
            node = self.router.pick(self.kept[0].size)
            if node is None:
                return
            task = self.kept.popleft()
            if fleet.now > task.at:
                fleet.outcome.note_wait(fleet.now, task)
            fleet.run(int(node.id), task)


def place_by_router(base: list[int], tasks: list[Task], callers: int, *, admits: bool = False) -> Outcome:
    """Place all tasks by memtools."""
    fleet = Fleet(base, random.Random(11), admits=admits)
    senders = [Caller(fleet, random.Random(100 + number)) for number in range(callers)]
    next_look = 0.0
    for number, task in enumerate(tasks):
        while next_look < task.at:
            fleet.advance(next_look)
            for sender in senders:
                if sender.kept:
                    sender.send_kept()
            next_look += ASK_S / 5
        fleet.advance(task.at)
        senders[number % callers].send(task)
    while any(sender.kept for sender in senders) or any(fleet.waiting):
        fleet.advance(next_look := next_look + ASK_S / 5)
        for sender in senders:
            sender.send_kept()
    return fleet.outcome


def place_otherwise(base: list[int], tasks: list[Task], choose: Callable[[Fleet], Choose]) -> Outcome:
    """Place all tasks in another way, at once."""
    fleet = Fleet(base, random.Random(11))
    chosen = choose(fleet)
    for task in tasks:
        fleet.advance(task.at)
        number = chosen(task.size)
        assert number is not None
        fleet.run(number, task)
    return fleet.outcome


def in_turn(fleet: Fleet) -> Choose:
    """Return the round robin."""
    turn = iter(range(10**12))
    return lambda _: next(turn) % len(fleet.base)


def by_chance(fleet: Fleet) -> Choose:
    """Return a uniform choice."""
    draw = random.Random(13)
    return lambda _: draw.randrange(len(fleet.base))


def always_the_best(fleet: Fleet) -> Choose:
    """Return the choice of the process that has told the most room."""
    numbers = range(len(fleet.base))
    best = [0, -1.0]

    def choose(_: int) -> int:
        if fleet.now - best[1] >= ASK_S or best[1] < 0:  # as a caller that asks as often as ours
            best[:] = [min(numbers, key=lambda number: fleet.told[number][1]), fleet.now]
        return int(best[0])

    return choose


def four_nodes() -> tuple[list[int], list[Task]]:
    """Return processes with 10, 30, 60 and 90 % headroom, and 10,000 tasks that take half of it at one time."""
    draw = random.Random(7)
    base = [int(LIMIT * (1 - headroom)) for headroom in (0.1, 0.3, 0.6, 0.9)]
    return base, [Task(0.1 * number, draw.randint(20, 120) * MIB, draw.uniform(2.0, 8.0)) for number in range(10_000)]


def flash_crowd() -> tuple[list[int], list[Task]]:
    """Return 1,000 processes and 2,000 tasks a second, a third of their headroom; 10,000 more come within 0.2 s."""
    draw = random.Random(3)
    base = [int(LIMIT * draw.uniform(0.1, 0.9)) for _ in range(1_000)]
    steady = [Task(number / 2_000, draw.randint(20, 120) * MIB, draw.uniform(2.0, 8.0)) for number in range(30_000)]
    crowd = [Task(draw.uniform(9.0, 9.2), draw.randint(20, 120) * MIB, draw.uniform(2.0, 8.0)) for _ in range(10_000)]
    return base, sorted([*steady, *crowd], key=lambda task: task.at)


def simulate(base: list[int], tasks: list[Task], callers: int) -> dict[str, Outcome]:
    """Place the same tasks in all ways."""
    return {
        "memtools, `pick`": place_by_router(base, tasks, callers),
        "memtools, `pick` and `admit`": place_by_router(base, tasks, callers, admits=True),
        "round robin": place_otherwise(base, tasks, in_turn),
        "random": place_otherwise(base, tasks, by_chance),
        "always the best": place_otherwise(base, tasks, always_the_best),
    }


def pick_us(nodes: int, rounds: int) -> float:
    """Return what one pick takes, in microseconds: the median of the rounds."""
    draw = random.Random(5)
    known = [
        Node(str(number), "n", "h", 1, 0, LIMIT, draw.randint(LIMIT // 10, LIMIT), Level.NORMAL)
        for number in range(nodes)
    ]
    router = Router(draw=draw.random)
    taken: list[float] = []
    for _ in range(rounds):
        router.update(known)
        began = time.perf_counter()
        for _ in range(1_000):
            router.pick(64 * 1024)
        taken.append((time.perf_counter() - began) * 1_000)
    return sorted(taken)[len(taken) // 2]


def run(rounds: int = 15) -> list[Result]:
    """Simulate, print the tables, and time the picks."""
    results: list[Result] = []
    scenes = {"4 processes, 10,000 tasks": (*four_nodes(), 1), "1,000 processes, a flash crowd": (*flash_crowd(), 20)}
    for title, (base, tasks, callers) in scenes.items():
        print(f"\n| {title} | out of memory | over their limit | worst use | p99 | held back | longest |")
        print("|---|---|---|---|---|---|---|")
        outcomes = simulate(base, tasks, callers)
        for name, outcome in outcomes.items():
            print(f"| {name} | {outcome.in_words(len(base))} |")
        ours, others = outcomes["memtools, `pick`"].out_of_memory, outcomes["round robin"].out_of_memory
        target, note = (0.0 if len(base) == 4 else 0.1), f"{ours:,} against {others:,}"
        results.append(Result(f"{title}: out-of-memory events", "round robin", ours / others, target, note))
    for nodes in (4, 100, 1_000):
        taken = pick_us(nodes, rounds)
        title, note = f"a pick among {nodes:,} processes", f"{taken:.1f} µs"
        results.append(Result(title, f"{TARGET_US:.0f} µs", taken / TARGET_US, 1.0, note))
    return results


if __name__ == "__main__":
    print_results(run())
