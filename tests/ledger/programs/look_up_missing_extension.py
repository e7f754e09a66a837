"""Count how often an extension that is missing is looked up."""

import sys


class Blocker:
    lookups = 0

    def find_spec(self, name, path=None, target=None):
        if name == "memtools.ledger._native":
            self.lookups += 1
            raise ImportError("blocked")
        return


blocker = Blocker()
sys.meta_path.insert(0, blocker)
from memtools import memory_scope  # noqa: E402  # after the finder
from memtools.ledger import native_reason  # noqa: E402

memory_scope("first")
before = blocker.lookups
for _ in range(100):
    memory_scope("scope")
print(before > 0, blocker.lookups - before, "blocked" in native_reason())
