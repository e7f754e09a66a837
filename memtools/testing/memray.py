"""Short recordings of every allocation with memray (extra `memray`), for a flame graph.

memray allows one recording per process at a time. Another thread than the one that began it may end it; the profile
function of `sys.setprofile` is then restored when the block is left. With `python_allocators` memray hooks Python's
allocators and restores at its end what it found at its start, so that hooks installed in between would be lost. The
native ledger therefore installs its hooks first.
"""

import os
import sys
import threading
import time
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from memtools._threads import OwnThread
from memtools.errors import ConfigError, MissingExtraError
from memtools.ledger import Meter, choose_meter, native_reason
from memtools.units import parse_seconds, parse_size

Ending: TypeAlias = Literal["block", "time", "size"]

_POLL_S: Final = 0.05  # seconds between two checks of the file size


class burst_recording:  # noqa: N801  # used as a statement, as memory_scope is
    """Record every allocation of the process for a while, into a file for memray.

    The recording ends with the block, after `seconds`, or when the file has `max_bytes`, whichever comes first; the
    block itself goes on. The thread that checks time and size ends with the block.

    `with burst_recording("burst.bin", seconds=10): ...`, then `memray flamegraph burst.bin`.

    Args:
        path: the file, which must not exist.
        seconds: the longest time, more than 0.
        max_bytes: the largest size of the file; it may grow for another 50 ms and by memray's own buffer.
        native_traces: record frames of C code, too; needs debug symbols, and costs more.
        python_allocators: record each object, not only what Python takes from the system; costs more.

    Raises:
        ConfigError: at construction, for a file that exists, or for invalid limits.
        MissingExtraError: at construction, where memray is not installed.
        RuntimeError: on entering, by memray: the process is being recorded already.
        OSError: on entering, by memray: the file cannot be written.

    Works in `async with`, too. Cost: that of memray, two to four times the time of code that allocates much; memray
    keeps a pipe, two descriptors, until the process ends.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        seconds: float = 10.0,
        max_bytes: int | str = "256 MiB",
        native_traces: bool = False,
        python_allocators: bool = False,
    ) -> None:
        self.path: str = os.fspath(path)
        if os.path.lexists(self.path):
            raise ConfigError("path", self.path, "the name of a file that does not exist yet")
        self._seconds = parse_seconds(seconds, name="seconds")
        self._max_bytes = parse_size(max_bytes, name="max_bytes")
        if not self._seconds or not self._max_bytes:
            raise ConfigError("seconds, max_bytes", (seconds, max_bytes), "more than 0")
        self._options = {"native_traces": native_traces, "trace_python_allocators": python_allocators}
        self._library = _load()
        self._ended_by: Ending | None = None
        self._ending = threading.Lock()
        self._is_over = threading.Event()
        self._tracker: Any = None  # memray's own, in C
        self._monitor: threading.Thread | None = None
        self._profile: Any = None  # the profile function before
        self._held: Meter | None = None

    @property
    def ended_by(self) -> Ending | None:
        """`"block"`, `"time"` or `"size"`; None before and during the recording."""
        return self._ended_by

    @property
    def size_bytes(self) -> int:
        """The size of the file in bytes; 0 before it exists."""
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    def __enter__(self) -> Self:
        if self._tracker is not None:
            raise RuntimeError("a recording can be entered once: make another burst_recording, with another file")
        tracker = self._library.Tracker(self.path, **self._options)
        self._hold_ledger()
        self._profile = sys.getprofile()
        try:
            tracker.__enter__()
        except BaseException:
            self._release_ledger()
            raise
        self._tracker = tracker
        self._monitor = OwnThread(target=self._watch, name="memtools burst recording", daemon=True)
        self._monitor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._monitor is not None  # set on entering
        self._end("block")
        self._is_over.set()
        self._monitor.join()
        if sys.getprofile() is not self._profile:
            sys.setprofile(self._profile)
        self._release_ledger()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        state = f"ended by {self._ended_by}" if self._ended_by else "recording" if self._tracker else "not begun"
        return f"<burst_recording {self.path!r} {state}>"

    def _watch(self) -> None:
        deadline = time.monotonic() + self._seconds
        while (left := deadline - time.monotonic()) > 0:
            if self.size_bytes >= self._max_bytes:
                return self._end("size")
            if self._is_over.wait(min(left, _POLL_S)):
                return None
        return self._end("time")

    def _end(self, by: Ending) -> None:
        with self._ending:
            if self._ended_by is None:
                self._ended_by = by
                self._tracker.__exit__(None, None, None)

    def _hold_ledger(self) -> None:
        if self._options["trace_python_allocators"] and not native_reason():
            self._held = choose_meter("native")
            self._held.acquire()

    def _release_ledger(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()


def _load() -> Any:  # Any: memray may not be installed
    try:
        # By its name: to some tools `import memray` would mean this file.
        return import_module("memray")
    except ImportError:
        raise MissingExtraError("memray", "memray") from None
