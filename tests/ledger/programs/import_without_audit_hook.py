"""Import what looks for the module of sub-interpreters, without making one: no audit hook may be added."""

import asyncio
import concurrent.futures
import sys

from memtools.ledger import native_reason
from memtools.scopes import memory_scope

assert "_interpreters" in sys.modules
assert not native_reason()
with memory_scope("open", meter="native") as opened:
    asyncio.run(asyncio.sleep(0))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(abs, -1).result()
finders = [finder for finder in sys.meta_path if type(finder).__name__ == "_SubinterpreterFinder"]
assert len(finders) == 1  # which goes where the hook is added
print("checked")
