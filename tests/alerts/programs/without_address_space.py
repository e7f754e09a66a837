"""Emit events with too little address space left for the stack of a thread."""

import resource
import threading
from pathlib import Path

from memtools.alerts import AlertRule, Alerts
from memtools.events import TaskAbandoned, emit

alerts = Alerts([AlertRule("warning", notify="log", action=print)])
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
threading.stack_size(64 << 20)  # and enough for all else, such as the modules that the first warning loads
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), resource.RLIM_INFINITY))
with alerts:
    for number in range(100):
        emit(TaskAbandoned("nightly", f"import {number}", 1.0))
    print("served")
