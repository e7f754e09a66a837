"""A burst recording of every allocation, for a flame graph: the door to memray.

Covers: a recording that ends by itself, after so many seconds or so many bytes of file.
Leaves to others: what is recorded and how it is read (memray): `pip install 'memtools[memray]'`, then
`memray flamegraph FILE`.

memray allows one recording per process at a time. It may be ended by another thread than the one that began it; the
profile function of `sys.setprofile` is then put back when the block is left. With `python_allocators` it puts hooks
under Python's allocators and takes them out by putting back what it found: hooks that came in between would go as
well. So the native ledger, where it is built, puts its own in place before.
"""

import os
import sys
import threading
import time
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from memtools.errors import ConfigError, MissingExtraError
from memtools.ledger import Meter, choose_meter, native_reason
from memtools.units import parse_seconds, parse_size

Ending: TypeAlias = Literal["block", "time", "size"]

_LOOK_S: Final = 0.05  # between two looks at the size of the file


class burst_recording:  # noqa: N801  # used as a statement, as memory_scope is
    """Record every allocation of the process for a while, into a file that memray reads.

    The recording ends with the block, after `seconds`, or when the file has `max_bytes`, whichever comes first; the
    block goes on as if nothing had happened. The thread that looks after time and size ends with the block.

    `with burst_recording("burst.bin", seconds=10): ...`, then `memray flamegraph burst.bin`.

    Args:
        path: the file, which must not exist.
        seconds: how long it may last, more than 0.
        max_bytes: how large the file may get; it grows on for up to 50 ms and memray's own buffer.
        native_traces: record frames of C code as well; needs debug symbols, and costs more.
        python_allocators: record each object, and not only what Python takes from the system; costs more.

    Raises:
        ConfigError: at construction, for a file that exists, or limits that make no sense.
        MissingExtraError: at construction, where memray is not installed.
        RuntimeError: on entering, by memray: the process is being recorded already.
        OSError: on entering, by memray: the file cannot be written.

    Works in `async with` as well. Cost: memray's own, two to four times the time of code that
    allocates much; it keeps a pipe, two descriptors, until the process ends.
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
        self._watcher: threading.Thread | None = None
        self._profile: Any = None  # what `sys.setprofile` was given
        self._held: Meter | None = None

    @property
    def ended_by(self) -> Ending | None:
        """`"block"`, `"time"` or `"size"`; None while it is recording, and before."""
        return self._ended_by

    @property
    def size_bytes(self) -> int:
        """What the file has now, in bytes; 0 before it is there."""
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    def __enter__(self) -> Self:
        if self._tracker is not None:
            raise RuntimeError("a recording is made once: begin another, with another file")
        tracker = self._library.Tracker(self.path, **self._options)
        self._hold_ledger()
        self._profile = sys.getprofile()
        try:
            tracker.__enter__()
        except BaseException:
            self._release_ledger()
            raise
        self._tracker = tracker
        self._watcher = threading.Thread(target=self._watch, name="memtools burst recording", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watcher is not None  # set on entering
        self._end("block")
        self._is_over.set()
        self._watcher.join()
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
            if self._is_over.wait(min(left, _LOOK_S)):
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


def _load() -> Any:  # Any: the door must open where memray is not there
    try:
        # By its name: to some tools `import memray` would mean this very file.
        return import_module("memray")
    except ImportError:
        raise MissingExtraError("memray", "memray") from None
