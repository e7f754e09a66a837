"""A Celery app that `watch_worker` watches: each call of `leak` keeps 1 MiB and notes what it sees in the file `runs`.

Run as a program with a number it sends so many tasks, and one that exceeds its budget.
"""

import json
import os
import sys
import time

from celery import Celery

from memtools import MemoryMonitor
from memtools.integrations.celery import watch_worker
from memtools.ledger import active_owner, statistics
from memtools.monitor import monitors

FOLDER = os.getcwd()
LEAK_BYTES = 2**20

app = Celery("celery_recycled", broker="filesystem://", backend="file://" + FOLDER + "/results")
app.conf.broker_transport_options = {
    "data_folder_in": FOLDER + "/queue",
    "data_folder_out": FOLDER + "/queue",
    "control_folder": FOLDER + "/control",
    "polling_interval": 0.01,
}
app.conf.worker_cancel_long_running_tasks_on_connection_loss = True
app.conf.broker_connection_retry_on_startup = True
app.conf.task_acks_late = True

monitor = MemoryMonitor(warning="2 GiB", critical="4 GiB", name="tasks")
watch_worker(app, budget="40 MiB", monitor=monitor, growth="10 MiB", warm_up=3)

kept = []


def left_behind():
    """Return how many calls of `leak` have ended in this process, and what they have left."""
    for account in statistics().accounts:
        if account.name == "celery_recycled.leak":
            return [account.started - 1, account.retained_bytes]
    return None


@app.task
def leak(number):
    left = left_behind()
    kept.append(b"x" * LEAK_BYTES)
    modes = [monitor.statistics().mode for monitor in monitors()]
    run = {"number": number, "pid": os.getpid(), "owner": active_owner().name, "left": left, "modes": modes}
    with open("runs", "a") as file:
        file.write(json.dumps(run) + "\n")
    time.sleep(0.02)


@app.task(bind=True)
def exceed(self, size_bytes):
    return len(bytearray(b"x") * size_bytes)


if __name__ == "__main__":
    import celery_recycled as tasks  # under the name that the worker knows

    tasks.exceed.delay(60_000_000)
    for number in range(int(sys.argv[1])):
        tasks.leak.delay(number)
