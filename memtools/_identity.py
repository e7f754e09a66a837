"""What program this is: host, pod, versions and command line, for reports and messages that are read elsewhere.

A file of its own because the report of a monitor and the alerts both need it.
"""

import os
import platform
import re
import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from memtools._text import printable

_MAX_COMMAND: Final = 300  # characters
_SECRET: Final = re.compile(r"passw|secret|token|credential|api.?key|auth(?!or)", re.IGNORECASE)
_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_MASK: Final = "***"
_UNKNOWN: Final = "unknown"


def identity() -> tuple[tuple[str, str], ...]:
    """Return it as (label, text): `process`, `pod` where `POD_NAME` is set, `versions` and `command`.

    Reads no file but the metadata of the distribution. In the command the values of options that are named like a
    secret are masked, and users and passwords in addresses. What cannot be found out, as without memory or descriptors,
    is unknown.
    """
    lines = [("process", f"{os.getpid()} on {_known(lambda: printable(socket.gethostname(), 100))}")]
    pod, namespace = os.environ.get("POD_NAME", ""), os.environ.get("POD_NAMESPACE", "")
    if pod:
        lines.append(("pod", printable(f"{namespace}/{pod}" if namespace else pod, 200)))
    lines.append(("versions", f"memtools {_known(_own_version)}, Python {_known(platform.python_version)}"))
    lines.append(("command", _known(command_line)))
    return tuple(lines)


def _known(find: Callable[[], str]) -> str:
    try:
        return find()
    except Exception:
        return _UNKNOWN


def command_line() -> str:
    """Return the command line on one line, cut, without what looks like a secret."""
    words: list[str] = []
    is_secret = False
    for word in sys.orig_argv:
        name, equals, _ = word.partition("=")
        is_option = word.startswith("-") and _SECRET.search(name) is not None
        if is_secret and not word.startswith("-"):
            words.append(_MASK)
        elif equals and _SECRET.search(name):
            words.append(f"{name}={_MASK}")
        else:
            words.append(_USER_INFO.sub(_MASK, word))
        is_secret = is_option and not equals
    line = printable(" ".join(words), _MAX_COMMAND + 1)
    return line if len(line) <= _MAX_COMMAND else f"{line[:_MAX_COMMAND]}…"


def _own_version() -> str:
    try:
        return version("memtools")
    except PackageNotFoundError:
        return "from its source"
