"""A scripted machine of cgroup and /proc files, and functions that run in forked children."""

import errno
import os
import pickle
import sys
import warnings
from collections.abc import Callable

import pytest

from memtools.readings import Headroom, Limit
from memtools.readings._cgroups import CgroupDirectory, KernelFiles, find_directories
from memtools.readings._limits import LimitReader, meminfo_bytes

GIB = 2**30


class FakeMachine:
    """Files by path, or the error to raise for it, and a clock that stands still."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | OSError] = {}
        self.environ: dict[str, str] = {}
        self.now = 0.0
        self.reads: list[str] = []
        self.resident = 0
        self.reader = LimitReader(
            self.read,
            clock=lambda: self.now,
            physical=lambda: meminfo_bytes(KernelFiles(self.read), b"MemTotal"),
            available=lambda: meminfo_bytes(KernelFiles(self.read), b"MemAvailable"),
            resident=lambda: self.resident,
            environ=self.environ,
        )

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        found = self.files.get(path, FileNotFoundError(errno.ENOENT, "no such file", path))
        if isinstance(found, OSError):
            raise found
        return found

    def host(self, total: int, available: int | None = None) -> None:
        lines = [f"MemTotal:       {total // 1024} kB\n"]
        if available is not None:
            lines.append(f"MemAvailable:   {available // 1024} kB\n")
        self.files["/proc/meminfo"] = "".join(lines).encode()

    def v2(self, own: str, *, shown: str = "/", point: str = "/sys/fs/cgroup") -> None:
        self._append("/proc/self/cgroup", f"0::{own}\n")
        self._append("/proc/self/mountinfo", f"35 24 0:30 {shown} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n")

    def v1(self, own: str, *, shown: str = "/", point: str = "/sys/fs/cgroup/memory") -> None:
        self._append("/proc/self/cgroup", f"4:memory:{own}\n")
        self._append("/proc/self/mountinfo", f"32 31 0:29 {shown} {point} rw,relatime - cgroup cgroup rw,memory\n")

    def put(self, directory: str, **values: object) -> None:
        """Write cgroup files; `memory_max=5` is the file `memory.max`, whose text is `5` and a line feed."""
        for name, value in values.items():
            path = f"{directory}/{name.replace('memory_', 'memory.', 1)}"
            self.files[path] = value if isinstance(value, (bytes, OSError)) else f"{value}\n".encode()

    def directories(self) -> tuple[CgroupDirectory, ...]:
        return find_directories(KernelFiles(self.read))

    def limit(self, chosen: object = None, *, refresh: bool = True) -> Limit:
        return self.reader.limit(chosen, refresh=refresh)

    def headroom(self, chosen: object = None, *, refresh: bool = True) -> Headroom:
        return self.reader.headroom(chosen, refresh=refresh)

    def _append(self, path: str, line: str) -> None:
        before = self.files.get(path, b"")
        assert isinstance(before, bytes)
        self.files[path] = before + line.encode()


@pytest.fixture
def machine() -> FakeMachine:
    """Return a machine of 64 GiB, half of it free, without cgroups."""
    fake = FakeMachine()
    fake.host(64 * GIB, 32 * GIB)
    return fake


@pytest.fixture
def in_child() -> Callable[..., object]:
    """Return a function that calls a function in a forked child and returns its result."""
    if sys.platform == "win32":
        pytest.skip("there is no fork on Windows")
    return _in_child


def _in_child(work: Callable[[], object], *, fork: Callable[[], int] = os.fork) -> object:
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # Some tests fork while threads run, which is what they test.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = fork()
    if child == 0:
        _send_result(work, write_end)

    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    result = pickle.loads(data)
    if isinstance(result, BaseException):
        raise result
    return result


def _send_result(work: Callable[[], object], descriptor: int) -> None:
    import signal

    signal.alarm(30)  # a child that hangs must not hang the suite
    try:
        try:
            result = work()
        except BaseException as error:
            result = error
        os.write(descriptor, pickle.dumps(result))
    finally:
        os._exit(0)
