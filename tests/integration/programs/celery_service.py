"""A Celery app with a monitor, an account for each task, and a task with a budget; its broker is a folder beside it.

Run as a program it sends the tasks and prints their results as JSON.
"""

import json
import os
import sys
import time

from celery import Celery, group

from memtools import BudgetExceeded, MemoryMonitor, memory_budget, memory_scope

# The worker and the sender both run in it.
FOLDER = os.getcwd()
TIMEOUT_S = 60

app = Celery("tasks", broker="filesystem://", backend="file://" + FOLDER + "/results")
app.conf.broker_transport_options = {
    "data_folder_in": FOLDER + "/queue",
    "data_folder_out": FOLDER + "/queue",
    "control_folder": FOLDER + "/control",
    "polling_interval": 0.05,
}
app.conf.worker_cancel_long_running_tasks_on_connection_loss = True
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1

kept = []
monitor = MemoryMonitor(warning="2 GiB", critical="4 GiB", name="tasks", min_interval=0.05, max_interval=0.2)
if os.environ.get("SENDS") != "1":
    monitor.start()  # in the worker, before it forks its pool


@app.task
def use(size_bytes):
    with memory_scope("use") as scope:
        parts = []
        for _ in range(10):
            parts.append(bytearray(size_bytes // 10))
            time.sleep(0.001)
        kept.append(parts[:5])
        del parts
    usage = scope.usage
    watched = [os.getpid(), monitor.level.name, monitor.statistics().mode]
    return [usage.retained_bytes, usage.peak_bytes, usage.exact, watched]


@memory_budget("8 MB")
def grow_without_end():
    parts = []
    while True:
        parts.append(bytearray(100_000))
        time.sleep(0.0001)


@app.task
def stop():
    try:
        grow_without_end()
    except BudgetExceeded as error:
        return error.used_bytes
    return None


if __name__ == "__main__":
    import celery_service as tasks  # under the name that the worker knows

    sizes = json.loads(sys.argv[1])
    used = group(tasks.use.s(size) for size in sizes).apply_async()
    stopped = group(tasks.stop.s() for _ in range(4)).apply_async()
    results = [results.get(timeout=TIMEOUT_S) for results in (used, stopped)]
    print(json.dumps(results))
