"""What another process has open, and whose it is.

A file of its own because it reads processes other than this one, and is loaded on first need. Linux only; elsewhere
nothing is known.
"""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

# The system calls in which main threads wait; the numbers are those of the machine.
_CALLS: Final = {
    "x86_64": {
        0: "read", 7: "poll", 23: "select", 34: "pause", 35: "nanosleep", 42: "connect", 43: "accept", 45: "recvfrom",
        47: "recvmsg", 61: "wait4", 128: "rt_sigtimedwait", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait",
        247: "waitid", 270: "pselect6", 271: "ppoll", 281: "epoll_pwait", 288: "accept4", 441: "epoll_pwait2",
    },
    "aarch64": {
        22: "epoll_pwait", 63: "read", 72: "pselect6", 73: "ppoll", 95: "waitid", 98: "futex", 101: "nanosleep",
        115: "clock_nanosleep", 202: "accept", 203: "connect", 207: "recvfrom", 212: "recvmsg", 242: "accept4",
        260: "wait4", 441: "epoll_pwait2",
    },
}  # fmt: skip
_PYTHON: Final = re.compile(rb"^(libpython|python|pypy)[0-9.]*[a-z]*(\.so[0-9.]*)?$")


def process_user(pid: int) -> int | None:
    """Return the number of the user that a process belongs to; None where there is no such process."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def open_files(pid: int) -> Iterator[tuple[str, str]]:
    """Yield a path that leads to each file that a process has open, and the file's path as the process sees it.

    Raises:
        PermissionError: when this user may not look at the process.
    """
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, ProcessLookupError):
        return
    for name in names:
        with suppress(FileNotFoundError):  # closed meanwhile
            yield f"{folder}/{name}", os.readlink(f"{folder}/{name}")


def has_same_root(pid: int) -> bool:
    """Return whether a process sees the same files at the same paths as this one, as one in a container does not."""
    try:
        return os.path.samestat(os.stat(root_of(pid)), os.stat("/"))
    except OSError:
        return False


def root_of(pid: int) -> str:
    """Return the path that leads to the root of a process's files."""
    return f"/proc/{pid}/root"


def is_python(pid: int) -> bool:
    """Return whether a process has an interpreter of Python in it, by the names of the files that it has mapped.

    Raises:
        PermissionError: when this user may not look at the process.
    """
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return any(_PYTHON.search(os.path.basename(line.rstrip())) for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return False


def user_name(number: int) -> str:
    """Return the name of a user, with the number."""
    try:
        import pwd

        return f"{pwd.getpwuid(number).pw_name} ({number})"
    except (ImportError, KeyError):
        return f"user {number}"


def waiting_call(pid: int) -> str:
    """Return the system call in which the main thread of a process waits; `running`, or empty where not known."""
    try:
        with open(f"/proc/{pid}/syscall", "rb", buffering=0) as file:
            first = file.read(256).split(b" ")[0].strip().decode("ascii", "replace")
    except OSError:
        return ""
    if not first.isdigit():
        return first
    names = _CALLS.get(platform.machine(), {})
    return names.get(int(first), f"number {first}")
