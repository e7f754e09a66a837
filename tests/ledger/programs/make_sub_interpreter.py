"""Make a sub-interpreter while an owner is open."""

import sys

from memtools.ledger import choose_meter, native_reason
from memtools.ledger._ledger import current_usage
from memtools.scopes import memory_scope

try:
    import _interpreters as made
except ImportError:
    import _xxsubinterpreters as made
before = memory_scope("before", meter="native")
with before:
    kept = [bytes(1000) for _ in range(100)]
assert before.usage.exact
assert before.owner.live_bytes >= 100_000
with memory_scope("open", meter="native") as opened:
    own = bytearray(500_000)
    if sys.argv[1] == "own":
        ident = made.create()
    else:
        ident = made.create(isolated=False) if sys.version_info < (3, 13) else made.create("legacy")
    made.run_string(ident, "x = [[n] for n in range(10000)]; del x") if hasattr(made, "run_string") else None
    during = current_usage(opened.owner)
made.destroy(ident)
after = memory_scope("after", meter="native")
with after:
    more = bytearray(500_000)
for usage in (during, opened.usage, after.usage):
    assert not usage.exact, usage
    assert "sub-interpreter" in usage.note, usage.note
assert opened.usage.peak_bytes >= 500_000
assert before.owner.live_bytes == before.usage.retained_bytes  # what still lives is not known any more
assert before.usage.exact
assert "sub-interpreter" in native_reason()
assert choose_meter().name == "rss"
print("checked")
