"""The price of asking what keeps an object alive, with 750,000 objects in the heap.

The census, the referrer walk from a growing container to its root, and the longest pause of both, against a promise in
seconds of CPU time: it matters how long the process stands still, and a busy machine adds to the wall clock.
"""

import gc
import statistics
import time
from collections.abc import Iterator

from _compare import Result, print_results

from memtools.heap import growth_between, heap_census, why_alive_async
from memtools.heap._census import count_in_slices

WHOLE_S = 0.6
STOP_S = 0.08


class Order:
    """One of many."""

    def __init__(self, number: int) -> None:
        self.number = [number]


class Book:
    """Who keeps them."""

    def __init__(self) -> None:
        self.orders: dict[int, Order] = {}


def run(rounds: int = 7) -> list[Result]:
    """Return CPU seconds as shares of what was promised, medians over the rounds."""
    book = Book()
    others = [{"number": number, "lines": [number]} for number in range(260_000)]
    book.orders.update({number: Order(number) for number in range(100_000)})
    gc.collect()
    objects = len(gc.get_objects())

    wholes: list[float] = []
    stops: list[float] = []
    for number in range(rounds):
        before = heap_census()
        book.orders.update({100_000 + number * 100 + extra: Order(extra) for extra in range(100)})
        counting = list(_stops(count_in_slices()))
        (grown,) = [one for one in growth_between(before, heap_census()) if one.address == id(book.orders)]
        walking = list(_walk(grown))
        wholes.append(sum(counting) + sum(walking))
        stops.append(max(counting + walking))
    del others
    note = f"CPU, {objects:,} objects"
    return [
        Result("census and walk", f"{WHOLE_S} s", statistics.median(wholes) / WHOLE_S, 1.0, note),
        Result("longest stop of them", f"{STOP_S} s", statistics.median(stops) / STOP_S, 1.0, note),
    ]


def _stops(steps: Iterator[object]) -> Iterator[float]:
    begun = time.process_time()
    for _ in steps:
        yield time.process_time() - begun
        begun = time.process_time()


def _walk(grown: object) -> Iterator[float]:
    # The coroutine is driven by hand: its pauses are the ends of the stops.
    steps = why_alive_async(grown)
    while True:
        begun = time.process_time()
        try:
            steps.send(None)
        except StopIteration as end:
            yield time.process_time() - begun
            if "orders" not in str(end.value):
                raise RuntimeError(f"the answer does not name who holds it: {end.value}") from None
            return
        yield time.process_time() - begun


if __name__ == "__main__":
    print_results(run())
