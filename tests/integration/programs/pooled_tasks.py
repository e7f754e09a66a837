"""A Celery application whose processes share one budget by `MEMTOOLS_CLUSTER`; its broker is the folder `FOLDER`.

Run as a program it sends tasks: `python -m pooled_tasks /hold/SIZE/SECONDS COUNT`.
"""

import sys

from celery import Celery
from pooled_service import FOLDER, grow, hold, monitor, parse

from memtools.integrations.celery import watch_worker

app = Celery("tasks", broker="filesystem://", backend="file://" + FOLDER + "/results")
app.conf.broker_transport_options = {
    "data_folder_in": FOLDER + "/queue",
    "data_folder_out": FOLDER + "/queue",
    "control_folder": FOLDER + "/control",
    "polling_interval": 0.05,
}
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1
app.conf.worker_lost_wait = 0.5  # after a process was killed

watch_worker(app, monitor=monitor)


@app.task(name="hold")
def run_hold(size_bytes, seconds):
    hold(size_bytes, seconds)


@app.task(name="grow")
def run_grow():
    grow()


if __name__ == "__main__":
    import pooled_tasks as tasks  # under the name that the worker knows

    path, count = sys.argv[1:]
    name, numbers = parse(path)
    for _ in range(int(count)):
        if name == "grow":
            tasks.run_grow.delay()
        else:
            tasks.run_hold.delay(int(numbers[0]), numbers[1])
