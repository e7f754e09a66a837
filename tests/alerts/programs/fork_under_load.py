"""Fork a hundred times while another thread emits events; print how many children ended by themselves."""

import os
import threading
import time

from memtools.alerts import AlertRule, Alerts
from memtools.events import TaskAbandoned, emit


class SilentChannel:
    """A channel that drops what it is sent."""

    def open(self):
        """Do nothing."""

    def send(self, alert, deadline):
        """Do nothing."""

    def close(self):
        """Do nothing."""


def emit_events():
    """Emit events until the end."""
    number = 0
    while not over.is_set():
        number += 1
        emit(TaskAbandoned("scope", f"task {number}", 1.0))


def fork_once():
    """Fork a child that emits an event; return its exit status, -1 if it hangs."""
    child = os.fork()
    if child == 0:
        emit(TaskAbandoned("scope", "task of the child", 1.0))
        os._exit(0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


over = threading.Event()
rule = AlertRule("warning", notify="people", action=lambda alert: None)
with Alerts([rule], channels={"people": SilentChannel()}, queue_size=10):
    thread = threading.Thread(target=emit_events)
    thread.start()
    ended = 0
    try:
        while ended < 100 and fork_once() == 0:
            ended += 1
    finally:
        over.set()
        thread.join()
print(ended)
