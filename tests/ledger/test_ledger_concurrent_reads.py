"""Reading the ledger in one thread while other threads open and close owners, as a scrape of metrics does."""

import sys
import threading

import pytest

from memtools.ledger import native_reason, open_owners, statistics
from memtools.ledger._ledger import current_usage
from memtools.scopes import memory_scope

METERS = ["rss", "tracemalloc", *([] if native_reason() else ["native"])]


@pytest.mark.parametrize("meter", METERS)
def test_owners_open_and_close_while_another_thread_reads(meter: str) -> None:
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            with memory_scope("work", meter=meter):
                pass

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        asked = 0
        while asked < 50:
            assert statistics().open_owners <= 4
            asked += len([current_usage(owner) for owner in open_owners()])
    finally:
        enough.set()
        sys.setswitchinterval(before)
        for thread in threads:
            thread.join()

    assert asked
    assert statistics().open_owners == 0
