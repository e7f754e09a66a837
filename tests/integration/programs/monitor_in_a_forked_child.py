"""Fork in a running loop; print the exit code of the child, 7 if it samples on operations."""

import asyncio
import os
import warnings

from memtools import MemoryMonitor

warnings.simplefilter("ignore", DeprecationWarning)

monitor = MemoryMonitor("95%", sample_every=1)


async def main():
    async with monitor:
        await asyncio.sleep(0.05)
        child = os.fork()
        if child == 0:
            before = monitor.statistics().samples
            monitor.record("child", 0.1)
            statistics = monitor.statistics()
            os._exit(7 if statistics.mode == "none" and statistics.samples > before else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))  # noqa: ASYNC222  # no other task runs


asyncio.run(main())
