"""The folder of black boxes: which folders will do, the names of files, and the boxes that dead processes have left.

A fixed name would not do: in a container the process id is always the same, and the program that starts again would
write over what it should tell.
"""

import logging
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, Final

from memtools._records import record
from memtools.black_box._file import is_running, read_state, set_reported
from memtools.black_box._layout import ENDED, OPEN, PAGE
from memtools.black_box._reader import BoxParser, oom_kills_now
from memtools.errors import ConfigError
from memtools.readings._other_processes import open_files, root_of
from memtools.readings._traces import file_system_of, pid_namespace

if sys.platform != "win32":
    import fcntl

_SUFFIX: Final = ".box"
_MEMORY: Final = "/dev/shm"  # a tmpfs; in Kubernetes it is the pod's, and outlives a container's restart
_KEPT: Final = 3  # boxes of dead processes of one name
_MAX_NAME: Final = 80
_MAKING_S: Final = 60.0  # a file takes a millisecond
_FILE_NAME: Final = re.compile(r"(?P<name>.+)\.(?P<pid>\d{1,10})\.(?P<ms>\d{1,16})\.box")
# A box that is being made, and an answer that nothing has fetched.
_PART_NAME: Final = re.compile(r"\..+\.box\.(part|[0-9a-f]{16}\.answer(\.part)?)")
# Where a page of a mapped file may be lost, or its store may wait for another machine.
_REFUSED: Final = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|lustre|fuse(\..*)?|fuseblk")
_LOST_AT_RESTART: Final = frozenset({"overlay", "aufs"})

_log = logging.getLogger("memtools.black_box")


@record
class BoxName:
    """What the name of a file says.

    Attributes:
        name: the program.
        pid: the process.
        ms: when it began, in milliseconds since the epoch.
        path: the file.
    """

    name: str
    pid: int
    ms: int
    path: str


def default_folder() -> str:
    """Return a folder in memory where the system has one, else the one for temporary files."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else tempfile.gettempdir()


def parse_folder(value: Any, *, name: str = "black_box") -> str:
    """Return the path of a folder for black boxes; True stands for the default.

    Raises:
        ConfigError: for what is no folder, one that cannot be written, and one on a network.
    """
    if sys.platform == "win32":
        raise ConfigError(name, value, "nothing on Windows, which has no files of the kind that it takes")
    accepted = f"a folder that exists and can be written, best on a tmpfs such as {_MEMORY}"
    given: Any = default_folder() if value is True else value
    try:
        folder = os.path.abspath(os.fsdecode(given))
    except (TypeError, ValueError):
        raise ConfigError(name, value, accepted) from None
    if not given or not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(name, value, accepted)
    kind = file_system_of(folder)
    if _REFUSED.fullmatch(kind):
        raise ConfigError(name, value, f"{accepted}; on {kind} a store may wait for another machine, or be lost")
    return folder


def warn_of_folder(folder: str) -> None:
    """Log a folder that a container loses when it is started again."""
    if file_system_of(folder) in _LOST_AT_RESTART:
        message = "black box: %s is in the container's own layer, which is gone when it is started again; give %s or a"
        _log.warning(f"{message} volume", folder, _MEMORY)


def parse_program_name(value: object) -> str:
    """Return the name of a program as a file name may have it; without a name, that of the script.

    Raises:
        ConfigError: for anything but text.
    """
    if value is None:
        value = os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".py")
    if not isinstance(value, str):
        raise ConfigError("name", value, "the name of the program, as a text")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", value).strip("_")[:_MAX_NAME] or "python"


def new_path(folder: str, name: str, ms: int) -> str:
    """Return the path of a new file of this process."""
    return os.path.join(folder, f"{name}.{os.getpid()}.{ms}{_SUFFIX}")


def boxes_in(folder: str, name: str | None = None) -> list[BoxName]:
    """Return the boxes of a folder, of one program or of all, the newest first.

    Raises:
        OSError: when the folder cannot be read.
    """
    found: list[BoxName] = []
    for entry in os.listdir(folder):
        parts = _FILE_NAME.fullmatch(entry)
        if parts is not None and name in (None, parts["name"]):
            found.append(BoxName(parts["name"], int(parts["pid"]), int(parts["ms"]), os.path.join(folder, entry)))
    return sorted(found, key=lambda box: (box.ms, box.pid), reverse=True)


def claim_killed(folder: str, name: str) -> list[str]:
    """Return the paths of boxes that processes of that name have left without an end, the newest first.

    Each is told to one caller only, of all processes that start at the same time. Of dead boxes the newest three are
    kept, those without an end before the others; the rest are removed.
    """
    killed: list[str] = []
    rest: list[tuple[bool, BoxName]] = []
    with suppress(OSError):
        _remove_parts(folder)
        for box in boxes_in(folder, name):
            with suppress(OSError), _claimed(box.path) as fd:
                if fd is None:
                    continue  # its process lives, or another one is reading it
                state = read_state(fd)
                if state == OPEN and is_running(fd):
                    continue  # by `exec` it runs another program, which has no part in the file
                if state == OPEN:
                    set_reported(fd, oom_kills_now(box.path))
                    killed.append(box.path)
                rest.append((state == ENDED, box))
    rest.sort(key=lambda pair: pair[0])  # stable: within both kinds the newest first
    for _, box in rest[_KEPT:]:
        with suppress(OSError):
            os.unlink(box.path)
    return [path for path in killed if os.path.exists(path)]


def box_of_process(pid: int) -> str | None:
    """Return the path of the box of a process; None where it has none.

    It is found among the files that the process has open; a process in a container sees other paths: then it is one
    through its own root. Where these files cannot be seen, as on other systems than Linux, it is looked for by its name
    in the default folder.

    Raises:
        PermissionError: when this user may not look at the process, and has no such file.
    """
    with suppress(OSError):
        for box in boxes_in(default_folder()):
            if box.pid == pid and os.access(box.path, os.W_OK) and _is_of_process(box.path, pid):
                return box.path
    for descriptor, target in open_files(pid):
        if not target.endswith(_SUFFIX):
            continue
        for path in (target, f"{root_of(pid)}{target}"):
            with suppress(OSError):
                if os.path.samefile(path, descriptor) and _is_of_process(path, pid):
                    return path
    return None


def _is_of_process(path: str, pid: int) -> bool:
    # A descriptor that a process has inherited belongs to its parent's box. In another namespace its id is another one.
    with open(path, "rb", buffering=0) as file, suppress(ValueError):
        box = BoxParser(path, file.read(PAGE))
        is_here = box.description.get("pid_namespace") == pid_namespace()
        return box.state == OPEN and (not is_here or (box.pid == pid and is_running(file.fileno())))
    return False


def _remove_parts(folder: str) -> None:
    """Remove files of processes that died while they made them, and answers whose askers have died."""
    for entry in os.listdir(folder):
        if _PART_NAME.fullmatch(entry):
            path = os.path.join(folder, entry)
            with suppress(OSError), _claimed(path) as fd:
                if fd is not None and os.fstat(fd).st_mtime < time.time() - _MAKING_S:
                    os.unlink(path)


@contextmanager
def _claimed(path: str) -> Generator[int | None]:
    """Yield a descriptor of a file of this user that no other process holds, else None; it is held meanwhile."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
            yield None
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield fd
    finally:
        os.close(fd)
