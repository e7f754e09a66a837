"""How long the garbage collector stopped the world.

Leaves to others: when to collect (`_collect`).
"""

import gc
import threading
from time import perf_counter


class _Watch:
    """Called by the collector at the start and at the end of each collection."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._began = 0.0
        self.pause_s: float | None = None

    def __call__(self, phase: str, details: dict[str, int]) -> None:
        # Other threads may begin collections of their own, when foreign code in this one lets go of the GIL.
        if details["generation"] != 2 or threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._began = perf_counter()
        else:
            self.pause_s = perf_counter() - self._began


def collect_measured() -> float | None:
    """Collect all generations; return the pause in seconds, or None where a collection was already going on.

    Measured by `gc.callbacks`: finalisers and callbacks that run within are part of it, waiting for the GIL is not.
    """
    watch = _Watch()
    gc.callbacks.append(watch)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(watch)
    return watch.pause_s
