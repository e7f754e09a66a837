"""The price of the page of a report: its time and its weight with 500 owners and a week of minutes, and of the heap.

Against what was promised: 100 ms and 120 KiB for the page, and 4 s of CPU time for each million objects of a heap.
"""

import gc
import math
import statistics
import time

from _compare import Result, print_results

from memtools.heap._type_sizes import sizes_by_type
from memtools.reports import Growth, Report, Row, html_page
from memtools.timelines import Timeline

MIB = 2**20
PAGE_S = 0.1
PAGE_BYTES = 120 * 1024
HEAP_S = 4.0  # for a million objects


def run(rounds: int = 15) -> list[Result]:
    """Return shares of what was promised, medians over the rounds."""
    report, timeline = _report(), _week()
    times: list[float] = []
    for _ in range(rounds):
        begun = time.process_time()
        page = html_page(report, timeline=timeline)
        times.append(time.process_time() - begun)

    kept = [[number, f"row {number}"] for number in range(200_000)]
    objects = len(gc.get_objects())
    begun = time.process_time()
    sizes_by_type()
    heap_s = (time.process_time() - begun) / objects * 1e6
    del kept
    return [
        Result("the page, written", f"{PAGE_S} s", statistics.median(times) / PAGE_S, 1.0, "CPU, 500 owners, a week"),
        Result("the page, its weight", "120 KiB", len(page.encode()) / PAGE_BYTES, 1.0, "500 owners, a week"),
        Result("objects by type", f"{HEAP_S} s a million", heap_s / HEAP_S, 1.0, f"CPU, {objects:,} objects"),
    ]


def _report() -> Report:
    functions = tuple(
        Row(
            f"shop.orders.prices.update_{number}", 1000 + number, 0, 0, number * 123_457, number * 7_919,
            number * 1.37, ("native",), (), (), number * 61_001, number * 11,
        )
        for number in range(500)
    )  # fmt: skip
    return Report("shop", (), (), functions, Growth(300 * MIB, 320 * MIB, 20 * MIB, 10 * MIB), at_s=1_800_000_000.0)


def _week() -> Timeline:
    timeline = Timeline(limit_bytes=512 * MIB)
    for minute in range(10_080):
        base = 180 + 110 * minute / 10_080 + 25 * math.sin(minute / 1440 * 2 * math.pi)
        for offset in range(3):
            used = int((base + (minute * 7_919 + offset * 104_729) % 23) * MIB)
            timeline.add(used, at_s=1_800_000_000.0 + minute * 60 + offset * 20)
    return timeline


if __name__ == "__main__":
    print_results(run())
