"""Open owners around a `tracemalloc.stop()` that removes the hooks."""

import tracemalloc

tracemalloc.start()
from memtools.scopes import memory_scope  # noqa: E402  # after the start

kept = []
with memory_scope("outer", meter="native") as outer:
    kept.append(bytearray(1_000_000))
    tracemalloc.stop()  # restores the allocator that it found, without the hooks
    kept.append(bytearray(1_000_000))
with memory_scope("later", meter="native") as later:
    kept.append(bytearray(1_000_000))
print(outer.usage.exact, outer.usage.note)
print(later.usage.exact, abs(later.usage.retained_bytes - 1_000_000) < 20_000)
kept.clear()
print(later.owner.live_bytes < 20_000)
