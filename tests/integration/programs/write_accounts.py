"""Each worker of a service writes the account of each request, once it has ended, into a file of its own."""

import json
import os

from memtools.events import ScopeEnded


def write(event):
    if isinstance(event, ScopeEnded):
        with open(f"accounts-{os.getpid()}", "a") as file:
            figures = {"name": event.name, "retained": event.retained_bytes, "peak": event.peak_bytes}
            file.write(json.dumps(figures | {"exact": event.exact, "failed": event.failed}) + "\n")
