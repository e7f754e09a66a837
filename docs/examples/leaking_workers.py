"""A process pool whose tasks leak: its memory stays bounded, and a killed worker fails one task.

Run it with `python docs/examples/leaking_workers.py`.
"""

import asyncio
import os
import signal

from memtools.pools import WorkerDied, process_pool_scope

_leaked = []


def parse(page):
    """Parse a page, with a library that leaks a megabyte each time, and that crashes on page 13."""
    _leaked.append(b"x" * 1_000_000)
    if page == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return page % 7


async def main():
    async with process_pool_scope(2, recycle_above="20 MiB", max_pending=8, name="parse") as pool:

        async def parse_or_skip(page):
            try:
                return await pool.run(parse, page)
            except WorkerDied as error:
                print(error)
                return 0

        total = sum(await asyncio.gather(*map(parse_or_skip, range(150))))
        found = pool.statistics()
        print(found)
        for worker in found.workers:
            print(f"  worker {worker.pid}: {worker.tasks} tasks, grown by {worker.growth_bytes / 2**20:.0f} MiB")
    assert found.finished == 149
    assert found.died == 1
    print("total", total)


if __name__ == "__main__":
    asyncio.run(main())
