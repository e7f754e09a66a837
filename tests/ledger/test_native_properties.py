"""Live bytes per owner compared with tracemalloc's, to the byte, for random programs in threads and tasks.

Another process runs them, in which tracemalloc was started first: its own memory is then below the hooks, and not
charged. A snapshot is filtered by file, and each owner's code is in a file of its own.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtools.ledger import native_reason

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

# No lists, dicts, floats or short tuples, not even for the arguments of `bytes(size)`: the interpreter keeps some of
# them in free lists and reuses them, which no allocator sees, but tracemalloc does. No `id`: it calls audit hooks, and
# makes a tuple for them.
OWNER = """
many = (None,) * 600
one = bytearray(b"x")
several = frozenset(range(5000, 5200))

def grow(switch, counter, kept, size):
    switch(counter)
    kept.append(b"x" * size)
    kept.append("x" * (size % 5000))
    kept.append(many[: 30 + size % 500])
    kept.append({size + 2000, size + 3000, size + 4000})
    kept.append(one * size)
    switch(None)

def resize(switch, counter, kept, size):
    switch(counter)
    for thing in reversed(kept):
        if type(thing) is bytearray:
            if size % 2:
                thing.extend(b"x" * size)
            else:
                del thing[size:]
        elif type(thing) is set:
            thing |= several
            break
    thing = None
    switch(None)

def trim(switch, counter, kept, size):
    switch(counter)
    del kept[:size % 9]
    switch(None)

def scatter(switch, counter, kept, size):
    switch(counter)
    kept.sort(key=len)
    for number in range(size % 40):
        kept.append(b"y" * (2 + number * 20))
    number = None
    switch(None)
"""
CHILD = """
import asyncio, gc, json, sys, threading, tracemalloc
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
    for thread in threads: thread.start()
    for thread in threads: thread.join()

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
    own = [now - then for now, then in zip(traced(), before)]
    kept.clear()
    left = [counter.read()[0] for counter in counters]
    print(json.dumps([live, own, left]), flush=True)
"""

acts = st.tuples(
    st.sampled_from(["grow", "grow", "resize", "trim", "scatter"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.one_of(st.integers(0, 700), st.sampled_from([511, 512, 513, 65_535, 65_536]), st.integers(0, 300_000)),
)


@dataclass
class ChildProcess:
    """A process that runs programs and returns the figures of both."""

    process: subprocess.Popen[str]

    def run(self, how: str, program: list[Any]) -> tuple[list[int], list[int], list[int]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([how, program]) + "\n")
        self.process.stdin.flush()
        live, own, left = json.loads(self.process.stdout.readline())
        return live, own, left


@pytest.fixture(scope="module")
def child() -> Iterator[ChildProcess]:
    command = [sys.executable, "-X", "tracemalloc=1", "-c", CHILD, json.dumps(OWNER)]
    # In another folder, so that `-c` imports the installed package and not the checkout.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()
    ) as process:
        yield ChildProcess(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@settings(max_examples=40, deadline=None)
@given(
    how=st.sampled_from(["threads", "tasks"]),
    program=st.lists(st.lists(acts, max_size=15), min_size=1, max_size=4),
)
def test_live_bytes_of_a_tree_equal_those_of_tracemalloc(
    child: ChildProcess, how: str, program: list[list[Any]]
) -> None:
    live, own, left = child.run(how, program)

    assert live == [sum(own), sum(own[1:]), own[2]]
    assert left == [0, 0, 0]
