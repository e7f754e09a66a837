"""Fork a hundred times while threads use a monitor; print how many children ended well."""

import os
import threading
import time
import warnings

from memtools import MemoryMonitor

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested

monitor = MemoryMonitor("95%", sample_every=1, min_interval=0.001, max_interval=0.001)
over = threading.Event()


def load():
    while not over.is_set():
        monitor.record("load", 0.001)
        monitor.statistics()
        monitor.check()
        with monitor.admit():
            pass


threads = [threading.Thread(target=load) for _ in range(3)]
[thread.start() for thread in threads]
good = 0
with monitor:
    for _ in range(100):
        child = os.fork()
        if child == 0:
            assert monitor.statistics().mode == "thread"
            monitor.record("child", 0.1)
            with monitor.admit("1 MiB"):
                pass
            monitor.check()
            os._exit(7)
        deadline = time.monotonic() + 30
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                status = 0
                break
            time.sleep(0.001)
        good += os.waitstatus_to_exitcode(status) == 7
    over.set()
    [thread.join() for thread in threads]
print(good)
