"""Read the small files of the kernel, and tell "is not there" from "may not be read".

A file that is not there says that nothing is limited there. One that cannot be read says nothing, and what nobody said
must not be taken for "no limit": it is kept as a gap and shown in the result.
"""

import errno
import os
from collections.abc import Callable

# ENODEV: a file of a cgroup that was removed while we held it open.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV})


def rooted(root: str | os.PathLike[str]) -> Callable[[str], bytes]:
    """Return a function that reads a whole file by its absolute path below `root`."""
    prefix = os.fspath(root).rstrip("/")

    def read(path: str) -> bytes:
        with open(prefix + path, "rb", buffering=0) as file:
            return file.readall()

    return read


class Tree:
    """The files of one walk, and the gaps that it met.

    Attributes:
        gaps: paths of files that exist and could not be read or understood.
    """

    __slots__ = ("_read", "gaps")

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self.gaps: list[str] = []

    def content(self, path: str) -> bytes | None:
        """Return what the file holds; None where it is absent, or is a gap."""
        try:
            return self._read(path)
        except OSError as error:
            if error.errno not in _ABSENT:
                self.gaps.append(path)
        except ValueError:  # a NUL in the path
            self.gaps.append(path)
        return None

    def number(self, path: str) -> int | None:
        """Return the whole number that the file holds; None where it is absent, says `max`, or is a gap."""
        content = self.content(path)
        if content is None or content.strip() == b"max":
            return None
        return self._understood(content, path)

    def labelled(self, path: str, label: bytes) -> int | None:
        """Return the number on the line `label number`; None where the file or the line is absent, or is a gap."""
        content = self.content(path)
        if content is None:
            return None
        for line in content.splitlines():
            name, _, number = line.partition(b" ")
            if name.rstrip(b":") == label:
                return self._understood(number.removesuffix(b" kB"), path)
        return None

    def _understood(self, digits: bytes, path: str) -> int | None:
        digits = digits.strip()
        # int() would take signs and underscores as well, and refuses thousands of digits; the kernel writes at most 20.
        if digits.isdigit() and len(digits) <= 64:
            return int(digits)
        self.gaps.append(path)
        return None
