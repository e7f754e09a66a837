"""Print the tools of `sys.monitoring` that are in use after `import memtools`."""

import sys

import memtools  # noqa: F401

monitoring = getattr(sys, "monitoring", None)
print([monitoring.get_tool(number) for number in range(6)] if monitoring else [None])
