"""What the workers of the tests run. They import it by its name: its folder is in `sys.path`."""

import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

_kept: list[bytes] = []


def double(number: int) -> int:
    return 2 * number


def process_id(*_: object) -> int:
    return os.getpid()


def fail(text: str) -> None:
    raise ValueError(text)


def leak(megabytes: int, log: str = "", number: int = 0) -> tuple[int, int]:
    """Leak so much; return the process, and how many such leaks it had before."""
    before = len(_kept)
    _kept.append(b"x" * (megabytes * 2**20))
    if log:
        append(log, number)
    return os.getpid(), before


def append(log: str, number: int) -> int:
    """Write a line in one call: lines of several processes do not mix."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, b"%d\n" % number)
    finally:
        os.close(descriptor)
    return number


def kill_itself(log: str = "") -> None:
    if log:
        append(log, -1)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_child_and_die(seconds: float) -> None:
    """Fork a process that keeps all pipes open, and die."""
    warnings.simplefilter("ignore", DeprecationWarning)  # the worker has a thread: 3.12
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_with_status(status: int) -> None:
    os._exit(status)


def exit_the_interpreter() -> None:
    sys.exit("done")


def block_forever(log: str, *, ignore_sigterm: bool = False) -> None:
    """Say its process, and sleep."""
    if ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    append(log, os.getpid())
    time.sleep(600)


def zeros(count: int) -> bytes:
    return bytes(count)


def local_function() -> object:
    return lambda: None


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("with a lock")
        self.lock = threading.Lock()


class BecomesText(Exception):
    def __reduce__(self) -> tuple[object, ...]:
        return str, ("text",)


def raise_what_becomes_text() -> None:
    raise BecomesText


class NeedsTwo(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)


def raise_unpicklable() -> None:
    raise Unpicklable


def raise_needs_two() -> None:
    raise NeedsTwo(1, 2)


class FailsWhereItArrives:
    def __reduce__(self) -> tuple[object, ...]:
        return fail, ("not made",)


def return_what_fails() -> FailsWhereItArrives:
    return FailsWhereItArrives()


def swell(size: int) -> list[bytes]:
    """Make a list of 1 kB items, through the budget of the owner and through what it catches."""
    kept = []
    while len(kept) < size:
        try:
            kept.append(bytes(1000))
        except Exception:
            continue
    return kept


class SwellsWhereItArrives:
    def __reduce__(self) -> tuple[object, ...]:
        return swell, (40_000,)


def return_what_swells() -> SwellsWhereItArrives:
    return SwellsWhereItArrives()


def initialize_badly() -> None:
    raise RuntimeError("no licence")


def fail_until(folder: str, times: int) -> None:
    """Fail the first `times` times that it is called, whichever process calls it."""
    number = len(list(Path(folder).iterdir()))
    if number < times:
        (Path(folder) / f"{os.getpid()}").touch()
        raise RuntimeError(f"failure {number + 1}")


def sigint_handler() -> str:
    return repr(signal.getsignal(signal.SIGINT))


def close_descriptors() -> None:
    os.closerange(3, 256)
