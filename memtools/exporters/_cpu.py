"""How busy the process was since somebody asked last."""

import os
import time
from collections.abc import Callable
from typing import Final

_SHORTEST_S: Final = 0.1  # below it the clock of the processor is too coarse for a share; psutil's own advice


class Busyness:
    """The share of one core that this process used between two questions.

    Args:
        wall: monotonic seconds.
        cpu: processor seconds of all threads of this process.
        pid: the number of this process.

    Threads: safe; two that ask at once may get the share of the same time.
    """

    __slots__ = ("_cpu", "_mark", "_percent", "_pid", "_wall")

    def __init__(
        self,
        wall: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        pid: Callable[[], int] = os.getpid,
    ) -> None:
        self._wall = wall
        self._cpu = cpu
        self._pid = pid
        self._mark = (pid(), wall(), cpu())
        self._percent = 0.0

    def percent(self) -> float:
        """Return the share in percent since the last question, over 100 with several busy threads.

        Within 0.1 s of the last question its answer is given again. The child of a fork begins anew, as its
        processor time does.
        """
        pid, then, used = self._mark
        now = (self._pid(), self._wall(), self._cpu())
        if now[0] != pid:
            self._mark, self._percent = now, 0.0
        elif now[1] - then >= _SHORTEST_S:
            self._mark, self._percent = now, max(0.0, 100 * (now[2] - used) / (now[1] - then))
        return self._percent
