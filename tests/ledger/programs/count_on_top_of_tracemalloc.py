"""Print the bytes that the native meter and tracemalloc count for the same blocks."""

import tracemalloc

from memtools.ledger import _native, choose_meter

choose_meter("native").acquire()
names = {}
exec(
    compile(
        "def work(switch, counter, kept):\n"
        "    switch(counter)\n"
        "    kept.append(kept[0] * 1000); kept.append(kept[0] * 100_000); kept.append({1, 2, 3})\n"
        "    switch(None)\n",
        "<work>",
        "exec",
    ),
    names,
)
counter, kept = _native.Counter(), [b"x"]
names["work"](_native.switch, counter, kept)
traces = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "<work>", lineno=3)])
print(counter.read()[0], sum(block.size for block in traces.traces))
