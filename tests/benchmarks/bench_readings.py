"""The price of reading resident memory: against psutil, and against the bare system call with its parsing."""

import os

import psutil
from _compare import Result, compare, print_results

from memtools.readings import resident_bytes

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def run(rounds: int = 15) -> list[Result]:
    """Time one reading by each of the three ways."""
    descriptor = os.open("/proc/self/statm", os.O_RDONLY)

    def bare() -> int:
        return int(os.pread(descriptor, 128, 0).split()[1]) * _PAGE_BYTES

    kept = psutil.Process()
    try:
        timing = compare(
            {"own": resident_bytes, "bare": bare, "psutil": kept.memory_info},
            number=3_000,
            rounds=rounds,
            baseline="own",
        )
    finally:
        os.close(descriptor)
    note = f"{timing.median_ns('own') / 1000:.1f} us per call"
    return [
        Result("resident_bytes()", "a kept psutil.Process().memory_info()", 1 / timing.ratio("psutil"), 1 / 6, note),
        Result("resident_bytes()", "os.pread of statm and its parsing, unchecked", 1 / timing.ratio("bare"), 1.2, note),
    ]


if __name__ == "__main__":
    print_results(run())
