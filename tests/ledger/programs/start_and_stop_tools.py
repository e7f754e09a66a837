"""Start and stop memtools, tracemalloc and memray in the order of the arguments, and check the figures."""

import sys
import tracemalloc

from memtools.scopes import memory_scope

if any("memray" in step for step in sys.argv):
    import memray

    with memray.Tracker(destination=memray.FileDestination("/dev/null", overwrite=True)):
        pass  # its first use imports modules, which would be charged to the current owner

MB = 1_000_000
kept, scopes, trackers = [], [], {}


def ours_in():
    scopes.append((memory_scope("ours", meter="native").__enter__(), len(kept)))


def ours_out():
    scope, before = scopes.pop()
    scope.__exit__(None, None, None)
    usage, expected = scope.usage, (len(kept) - before) * MB
    if usage.exact:
        assert abs(usage.retained_bytes - expected) < 60_000, (sys.argv, usage, expected)
        del kept[before:]
        assert abs(scope.owner.live_bytes) < 60_000, (sys.argv, scope.owner.live_bytes)
    else:
        assert usage.note == "another tool removed the hooks from the allocator", usage


def memray_in(**options):
    tracker = memray.Tracker(destination=memray.FileDestination("/dev/null", overwrite=True), **options)
    tracker.__enter__()
    trackers["memray"] = tracker


STEPS = {
    "ours+": ours_in,
    "ours-": ours_out,
    "tracemalloc+": tracemalloc.start,
    "tracemalloc-": tracemalloc.stop,
    "memray+": memray_in,
    "memray-": lambda: trackers.pop("memray").__exit__(None, None, None),
    "pymalloc memray+": lambda: memray_in(trace_python_allocators=True),
    "pymalloc memray-": lambda: trackers.pop("memray").__exit__(None, None, None),
}
for step in sys.argv[1:]:
    STEPS[step]()
    kept.append(bytearray(MB))
    rubbish = [str(number) for number in range(2000)]
    del rubbish
kept.clear()
with memory_scope("later", meter="native") as later:
    kept.append(bytearray(MB))
assert later.usage.exact, later.usage
assert abs(later.usage.retained_bytes - MB) < 60_000, later.usage
print("fine")
