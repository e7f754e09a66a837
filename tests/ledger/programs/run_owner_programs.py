"""Run programs from standard input, and print live bytes of the native meter and of tracemalloc."""

import asyncio
import gc
import json
import sys
import threading
import tracemalloc

from memtools.ledger import _native, choose_meter

choose_meter("native").acquire()
gc.disable()
sys.setswitchinterval(1e-5)
SMALLEST = 16
owners = []
for number in range(3):
    names = {}
    exec(compile(json.loads(sys.argv[1]), f"<owner {number}>", "exec"), names)
    owners.append(names)


def act(one, counters, kept):
    kind, owner, whose, size = one
    owners[owner][kind](_native.switch, counters[owner], kept[whose], size)


def in_threads(acts, counters, kept):
    def work(mine):
        for one in mine:
            act(one, counters, kept)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_tasks(acts, counters, kept):
    async def work(mine):
        for one in mine:
            act(one, counters, kept)
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*map(work, acts))

    asyncio.run(main())


def traced():
    sizes = []
    snapshot = tracemalloc.take_snapshot()
    for number in range(3):
        only = tracemalloc.Filter(True, f"<owner {number}>")
        sizes.append(sum(max(block.size, SMALLEST) for block in snapshot.filter_traces([only]).traces))
    return sizes


tracemalloc.clear_traces()  # or each snapshot would hold all that was imported
for line in sys.stdin:
    how, acts = json.loads(line)
    root = _native.Counter()
    child = _native.Counter(root)
    counters = [root, child, _native.Counter(child)]
    kept = [[], [], []]
    before = traced()
    {"threads": in_threads, "tasks": in_tasks}[how](acts, counters, kept)
    live = [counter.read()[0] for counter in counters]
    own = [now - then for now, then in zip(traced(), before, strict=True)]
    kept.clear()
    left = [counter.read()[0] for counter in counters]
    print(json.dumps([live, own, left]), flush=True)
