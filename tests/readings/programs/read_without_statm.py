"""Read memory as on the platform that is named in the first argument."""

# psutil and its imports are loaded before the platform is changed: they choose by the same name.
import asyncio  # noqa: F401
import ctypes  # noqa: F401
import logging  # noqa: F401
import resource  # noqa: F401
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401

import psutil  # noqa: F401

sys.platform = sys.argv[1]
import memtools.readings as readings  # noqa: E402

assert "memtools.readings._statm" not in sys.modules
before = readings.read_process()
block = bytearray(b"x") * (30 << 20)
grown = readings.resident_bytes() - before.resident_bytes
assert 28 << 20 < grown < 35 << 20, grown
assert readings.peak_bytes() >= before.peak_bytes >= before.resident_bytes
assert readings.virtual_bytes() > readings.resident_bytes()
assert readings._process.PeakSince().peak_bytes() is None
assert readings.physical_bytes() > readings.available_bytes() > 0
print("right")
