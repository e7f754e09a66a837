"""An app of Celery whose broker and results are folders beside it."""

import os

from celery import Celery

# The worker and the sender both run in it.
FOLDER = os.getcwd()

app = Celery("tasks", broker="filesystem://", backend="file://" + FOLDER + "/results")
app.conf.broker_transport_options = {
    "data_folder_in": FOLDER + "/queue",
    "data_folder_out": FOLDER + "/queue",
    "control_folder": FOLDER + "/control",
}
app.conf.worker_cancel_long_running_tasks_on_connection_loss = True
app.conf.broker_connection_retry_on_startup = True


@app.task
def load(size_bytes):
    from memtools.ledger import active_owner
    from memtools.monitor import monitors

    block = bytearray(b"x") * size_bytes
    return len(block), active_owner().name, [monitor.statistics().mode for monitor in monitors()]
