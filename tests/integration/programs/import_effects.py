"""Print the state of the interpreter before and after `import memtools`, as JSON."""
# ruff: noqa: E402, F401  # the order of the imports is what is tested

import json
import logging
import os
import sys
import threading
import tracemalloc

import psutil
import typing_extensions
import wrapt

# What the dependencies change is not checked.
FOLDER = "/proc/self/fd"


def state():
    names = os.listdir(FOLDER) if sys.platform == "linux" else []
    paths = [f"{FOLDER}/{name}" for name in names]
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "descriptors": sorted(os.readlink(path) for path in paths if os.path.exists(path)),
        "environment": dict(os.environ),
        "tracing": tracemalloc.is_tracing(),
        "root handlers": len(logging.getLogger().handlers),
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.unraisablehook), str(sys.getprofile())],
    }


before = state()
import memtools

print(json.dumps({"before": before, "after": state(), "modules": sorted(sys.modules)}))
