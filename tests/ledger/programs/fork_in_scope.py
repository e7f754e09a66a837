"""Fork inside an open scope, and check the figures of both processes."""

import os

from memtools.scopes import memory_scope

kept = [bytearray(1_000_000)]
with memory_scope("forks", meter="native") as forks:
    kept.append(bytearray(1_000_000))
    child = os.fork()
    kept.append(bytearray(1_000_000))
    if not child:
        kept.append(bytearray(1_000_000))
expected = 2_000_000 if child else 3_000_000
right = abs(forks.usage.retained_bytes - expected) < 20_000 and forks.usage.exact
with memory_scope("afterwards", meter="native") as afterwards:
    kept.clear()
right = right and abs(forks.owner.live_bytes) < 20_000 and afterwards.usage.exact
if not child:
    os._exit(0 if right else 1)
print(right and os.waitpid(child, 0)[1] == 0)
