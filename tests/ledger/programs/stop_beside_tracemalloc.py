"""Stop owners in threads while tracemalloc starts and stops."""

import threading
import time
import tracemalloc

from memtools.errors import BudgetExceeded
from memtools.scopes import memory_scope

raised = []


def work():
    for _ in range(30):
        try:
            with memory_scope("runaway", meter="native", budget=200_000):
                kept = [bytes(1000) for _ in range(2_000)]  # noqa: F841  # kept for the budget
        except BudgetExceeded as error:
            raised.append(error.scope)


with memory_scope("first", meter="native"):
    pass  # installs the hooks below those of tracemalloc, whose stop() would remove them otherwise
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    tracemalloc.start()
    time.sleep(0.002)
    tracemalloc.stop()
    time.sleep(0.001)
assert len(raised) == 90, len(raised)
time.sleep(0.5)
print(threading.active_count(), "left")
