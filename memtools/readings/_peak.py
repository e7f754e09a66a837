"""The highest resident memory of this process since it began.

Linux keeps it as VmHWM; Windows as the peak working set. Elsewhere it is the highest that we have seen ourselves.
Never `ru_maxrss` alone: it may be the parent's (see `_high_water`, which takes only what is true of it).
"""

from collections.abc import Callable

from memtools.readings._high_water import HighWater

_LABEL = b"\nVmHWM:"


def kernel_peak_bytes(path: str = "/proc/self/status") -> int | None:
    """Return VmHWM in bytes; None where the kernel does not keep it."""
    try:
        with open(path, "rb", buffering=0) as file:
            status = file.read(8192)
    except OSError:
        return None

    _, found, rest = status.partition(_LABEL)
    words = rest.partition(b"\n")[0].split() if found else []
    if len(words) != 2 or not words[0].isdigit() or words[1] != b"kB":
        return None
    return int(words[0]) * 1024


class PeakMemory:
    """The kernel's peak, else our own maximum over what we were shown. Threads: safe."""

    __slots__ = ("_highest", "_kernel_peak", "_mark", "_new_mark")

    def __init__(
        self,
        *,
        kernel_peak: Callable[[], int | None] = kernel_peak_bytes,
        high_water: Callable[[], HighWater] = HighWater,
    ) -> None:
        self._kernel_peak = kernel_peak
        self._new_mark = high_water
        self._mark = high_water()
        self._highest = 0

    def after(self, resident_bytes: int) -> int:
        """Return the peak in bytes, `resident_bytes` being what is used now."""
        kernel = self._kernel_peak()
        if kernel is not None:
            # Both are sums of counters per processor that lag a little: the peak may read below the present.
            return max(kernel, resident_bytes)
        # A thread that overtakes us here could lower the mark by one reading; the next call mends it.
        self._highest = max(self._highest, resident_bytes, self._mark.risen_to() or 0)
        return self._highest

    def forget(self) -> None:
        """Begin anew: a forked child has its own history."""
        self._highest = 0
        self._mark = self._new_mark()
