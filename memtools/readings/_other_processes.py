"""What another process has open, and whose it is.

A file of its own because it reads processes other than this one, and is loaded on first need. Linux only; elsewhere
nothing is known.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

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
