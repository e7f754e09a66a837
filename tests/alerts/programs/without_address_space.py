"""Emit events with too little address space left for the stack of a thread."""

import resource
from pathlib import Path

from memtools.alerts import AlertRule, Alerts
from memtools.events import TaskAbandoned, emit

alerts = Alerts([AlertRule("warning", notify="log", action=print)])
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 20), -1))
with alerts:
    for number in range(100):
        emit(TaskAbandoned("nightly", f"import {number}", 1.0))
    print("served")
