"""Fork a hundred times while threads use monitor, alerts and metrics; print how many children ended well."""

import faulthandler
import os
import threading
import time
import warnings

from memtools import MemoryMonitor, memory_scope
from memtools.alerts import AlertRule, Alerts
from memtools.events import TaskAbandoned, emit
from memtools.exporters.prometheus import MemtoolsCollector

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested


class Silent:
    def open(self):
        pass

    def send(self, alert, deadline):
        pass

    def close(self):
        pass


over = threading.Event()
collector = MemtoolsCollector(None)  # a registry has a lock of its own, which a fork copies as it is held
monitor = MemoryMonitor("95%", sample_every=1, min_interval=0.001, max_interval=0.001)
rule = AlertRule("warning", notify="people", action=lambda alert: None)
alerts = Alerts([rule], channels={"people": Silent()}, monitor=monitor, queue_size=10)


def use():
    with memory_scope("load"):
        monitor.record("load", 0.001)
    emit(TaskAbandoned("scope", "task", 1.0))
    list(collector.collect())
    monitor.check()


def load():
    while not over.is_set():
        use()


def ends_well():
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(20)
        use()
        os._exit(7 if monitor.statistics().mode == "thread" else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 7
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


with alerts, monitor, collector:
    use()  # what is imported at the first use: a fork in the middle of an import hangs by CPython's own locks
    threads = [threading.Thread(target=load) for _ in range(2)]
    [thread.start() for thread in threads]
    good = sum(ends_well() for _ in range(100))
    over.set()
    [thread.join() for thread in threads]
print(good, threading.active_count())
