"""What `memtools top` takes of a processor: ten looks a second at processes of 2,000 owners each, on a terminal.

Processor time of the command, on a terminal of 40 lines and 120 columns: that of a longer run less that of a shorter
one, so that its start does not count. The programs allocate in all of their owners in turn.
"""

import fcntl
import os
import pty
import resource
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

from _compare import Result, print_results

_PROCESSES, _OWNERS = 8, 2_000
_SHORT_S, _LONG_S = 3.0, 13.0
_PROGRAM = f"""
import asyncio, sys, time
from memtools import memory_scope
from memtools.black_box import BlackBox
from memtools.readings import take_reading
async def hold(number):
    with memory_scope(f"group-{{number // 200}}"), memory_scope(f"GET /orders/{{number:05}}"):
        while True:
            rows = [str(each) for each in range(number % 20)]
            await asyncio.sleep(number % 7)
            del rows
async def main():
    with BlackBox(sys.argv[1], name="service") as box:
        tasks = [asyncio.ensure_future(hold(number)) for number in range({_OWNERS})]
        await asyncio.sleep(1)
        print("ready", flush=True)
        while True:
            box.observe(take_reading())
            await asyncio.sleep(0.2)
asyncio.run(main())
"""


def processor_s(folder: str, seconds: float) -> float:
    """Return the processor time of a run of so many seconds."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    reader = threading.Thread(target=_drain, args=(main,), daemon=True)
    reader.start()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    top = subprocess.Popen(
        [sys.executable, "-m", "memtools", "top", folder, "--every", "0.1"],
        stdin=terminal, stdout=terminal, env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(terminal)
    time.sleep(seconds)
    os.write(main, b"q")
    assert top.wait(60) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    reader.join()
    os.close(main)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 1 << 16):
            pass
    except OSError:  # the other end is closed
        return


def run(rounds: int = 3) -> list[Result]:
    """Return the share of a processor."""
    programs: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        try:
            command = [sys.executable, "-c", _PROGRAM, folder]
            programs += [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(_PROCESSES)]
            for program in programs:
                assert program.stdout is not None
                program.stdout.readline()
            shares = [
                (processor_s(folder, _LONG_S) - processor_s(folder, _SHORT_S)) / (_LONG_S - _SHORT_S)
                for _ in range(rounds)
            ]
        finally:
            for program in programs:
                program.kill()
                program.communicate()
    share = sorted(shares)[len(shares) // 2]
    what = f"top at 10 Hz, {_PROCESSES} processes of {_OWNERS:,} owners: {share:.1%} of a processor"
    return [Result(what, "10 % of a processor", share / 0.1, target=1.0, unit_note="processor time")]


if __name__ == "__main__":
    print_results(run())
