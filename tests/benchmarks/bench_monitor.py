"""The price of watching: an operation off and on its sample, and an idle monitor; against `psutil.Process`."""

import gc
import resource
import time
from collections.abc import Callable

import psutil
from _compare import Result, compare, print_results

from memtools import MemoryMonitor

_IDLE_S = 10.0
_OFF_US, _ON_US, _IDLE_SHARE = 1.0, 5.0, 0.001


def _bare() -> None:
    pass


def _new_psutil_process() -> None:
    psutil.Process().memory_info()
    _bare()


def _idle_share() -> float:
    """Return the share of one core that a started monitor takes while nothing happens."""
    monitor = MemoryMonitor("60%", "80%")
    with monitor:
        time.sleep(0.2)  # the first looks, and opening the pressure file
        gc.collect()
        began, used = time.perf_counter(), _cpu_s()
        time.sleep(_IDLE_S)
        return (_cpu_s() - used) / (time.perf_counter() - began)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run(rounds: int = 15) -> list[Result]:
    """Time calls of a function that does nothing, and an idle monitor."""
    rarely = MemoryMonitor("60%", "80%", sample_every=10**9).watch(_bare)
    always = MemoryMonitor("60%", "80%", sample_every=1).watch(_bare)
    tenth = MemoryMonitor("60%", "80%").watch(_bare)
    cases: dict[str, Callable[[], object]] = {
        "bare": _bare, "off": rarely, "on": always, "every 10th": tenth, "psutil": _new_psutil_process
    }  # fmt: skip
    timing = compare(cases, number=5_000, rounds=rounds, baseline="psutil")

    def over_us(case: str) -> float:
        return (timing.median_ns(case) - timing.median_ns("bare")) / 1000

    idle = _idle_share()
    guide = over_us("psutil")
    return [
        Result("an operation under watch, off its sample", f"{_OFF_US:.0f} us over bare", over_us("off") / _OFF_US,
               1.0, f"{over_us('off'):.2f} us over it; a new psutil.Process each time {guide:.1f} us"),
        Result("... on its sample", f"{_ON_US:.0f} us over the bare call", over_us("on") / _ON_US,
               1.0, f"{over_us('on'):.2f} us over it"),
        Result("... with every 10th looking, the default", "a new psutil.Process", over_us("every 10th") / guide,
               0.2, f"{over_us('every 10th'):.2f} us over the bare call"),
        Result("an idle monitor, in a thread, with pressure", "0.1 % of one core", idle / _IDLE_SHARE,
               1.0, f"{idle:.4%} of one core over {_IDLE_S:.0f} s"),
    ]  # fmt: skip


if __name__ == "__main__":
    print_results(run())
