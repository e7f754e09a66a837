"""Collections that look only at what came since: cheap enough for each round of a leak test.

Covers: freezing what is there, so that a full collection does not walk it, and thawing it at the end.
Leaves to others: when to collect (`_hunt`).

A full collection takes some 20 ms in a test run with its 150,000 objects, and seven of them are more than most tests
take. What was there before is nobody's growth, and need not be walked: `gc.freeze` sets it aside in no time.
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def only_what_is_new() -> Generator[None, None, None]:
    """Have collections inside the `with` leave alone what was there before.

    Somebody who has frozen objects himself would find them thawed: then nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
