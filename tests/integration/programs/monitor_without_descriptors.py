"""Use up all descriptors, then start a monitor on a loop and in a thread; print how each runs."""

import asyncio
import os
import resource

from memtools import MemoryMonitor

monitor = MemoryMonitor("95%", sample_every=1)
monitor.check()


async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kept = []
    try:
        while True:
            kept.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    async with monitor:
        await asyncio.sleep(0.05)
        monitor.record("job", 0.1)
        print(monitor.statistics().mode)
    with monitor:
        monitor.record("job", 0.1)
        print(monitor.statistics().mode)
    [os.close(fd) for fd in kept]


asyncio.run(main())
