"""What the resident memory of this process consists of.

From the mappings of /proc/self/smaps, the statistics of glibc's malloc (`mallinfo2`) and those of Python's own
allocator, which hands out blocks of up to 512 bytes from arenas of 1 MiB.

A mapping tells whose it is by its name, by its first bytes (a heap of glibc's arenas begins with a `heap_info`), or by
the stack pointer of a thread that lies in it. Python's arenas have no mark, that of large blocks of malloc may not be
found, and the kernel joins adjacent mappings: what the two allocators report is subtracted from the other anonymous
mappings.
"""

import os
import re
import struct
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from memtools._records import as_dict, record
from memtools._threads import running_threads
from memtools.errors import ReadingError
from memtools.readings._counters import find_mallinfo2
from memtools.readings._mapped_blocks import resident_of_blocks
from memtools.units import format_size

_SMAPS: Final = "/proc/self/smaps"
_TASKS: Final = "/proc/self/task"
_MEMORY: Final = "/proc/self/mem"  # unlike a pointer it refuses what another thread has just unmapped
_HEAP_BYTES: Final = 64 << 20  # HEAP_MAX_SIZE of glibc on 64-bit systems, and the alignment of its heaps
_MAX_GUARD_BYTES: Final = 64 << 10
_VARIABLES_BYTES: Final = 16 << 10  # DATA_STACK_CHUNK_SIZE of CPython: the frames of a thread's first calls
_HEADER: Final = rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+) *(.*)"
_SHARED: Final = ("/dev/shm/", "/memfd:", "/SYSV", "/dev/zero (deleted)", "[anon_shmem")
_OTHER_ALLOCATORS: Final = ("jemalloc", "mimalloc", "tcmalloc")
_ARENAS: Final = rb"arenas \* \d+ bytes/arena += +([\d,]+)"
_AVAILABLE: Final = rb"bytes in available blocks += +([\d,]+)"
_UNUSED: Final = rb"unused pools \* \d+ bytes += +([\d,]+)"
_MIN_SHOWN: Final = 1 << 20
_MANY_ARENAS: Final = 4
_WORDS_WITH_STACK: Final = 3  # the last two are the stack pointer and the program counter

PYTHON_BLOCKS: Final = "Python's small blocks"
MALLOC_BLOCKS: Final = "in use of malloc"
_NAMES: Final = {
    "python_bytes": PYTHON_BLOCKS,
    "python_free_bytes": "free in Python's arenas",
    "malloc_bytes": MALLOC_BLOCKS,
    "malloc_free_bytes": "free in malloc",
    "mapped_bytes": "other mappings",
    "stack_bytes": "stacks of threads",
    "file_bytes": "files and libraries",
    "shared_bytes": "shared memory",
    "meter_bytes": "tables of memtools",
}


@record
class ResidentPart:
    """One part of the resident memory.

    Attributes:
        name: what it is.
        size_bytes: its size, or its growth, in bytes.
        meaning: what it holds, in a few words.
        advice: what would lower it; empty where that is up to the program alone.
    """

    name: str
    size_bytes: int
    meaning: str
    advice: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.name} {format_size(self.size_bytes)}: {self.meaning}{advice}"


@record
class ResidentSplit:
    """The resident memory of this process by what holds it, in bytes; together all parts are `resident_bytes`.

    The parts are right to about 2 MiB. Where the system hides /proc/self/pagemap, large blocks of malloc that were
    never touched, such as those of `numpy.zeros`, count as in use, and the other mappings are less by as much.

    Attributes:
        resident_bytes: all of it.
        python_bytes: what Python's small blocks, of up to 512 bytes, occupy. None where that is not known: while
            tracemalloc is on, with `PYTHONMALLOC=malloc`, in free-threaded builds. They are other mappings then, or
            malloc's.
        python_free_bytes: free blocks and pools in Python's arenas; None likewise.
        malloc_bytes: blocks in use of glibc's malloc: Python's larger blocks, and those of C libraries. 0 where another
            malloc is in use.
        malloc_free_bytes: pages that malloc keeps for later.
        mapped_bytes: all other anonymous mappings: private `mmap`, allocators that libraries bring, and what Python's
            calls need for their variables beyond the first 16 KiB of each thread.
        stack_bytes: the stacks of the threads, with those 16 KiB.
        file_bytes: pages of files: the interpreter, libraries, and files that the program has mapped.
        shared_bytes: memory that other processes may share: `multiprocessing.shared_memory`, `/dev/shm`, and `mmap` by
            Python's default.
        meter_bytes: the tables of memtools' native ledger.
        threads: the number of threads.
        malloc_arenas: the number of malloc's arenas, as far as they have mappings of their own.
        allocator: the allocator behind `malloc`: `"malloc"`, or the name of one that was loaded in its place.
    """

    resident_bytes: int
    python_bytes: int | None
    python_free_bytes: int | None
    malloc_bytes: int
    malloc_free_bytes: int
    mapped_bytes: int
    stack_bytes: int
    file_bytes: int
    shared_bytes: int
    meter_bytes: int
    threads: int
    malloc_arenas: int
    allocator: str = "malloc"

    def parts(self, since: "ResidentSplit | None" = None) -> tuple[ResidentPart, ...]:
        """Return the parts, the largest first; with an earlier split what each has grown by."""
        found = [
            ResidentPart(name, size - ((getattr(since, field) or 0) if since else 0), *self._describe(field))
            for field, name in _NAMES.items()
            if (size := getattr(self, field)) is not None
        ]
        return tuple(sorted(found, key=lambda part: part.size_bytes, reverse=True))

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)

    def _describe(self, field: str) -> tuple[str, str]:
        meaning, advice = _MEANINGS[field]
        if field == "malloc_free_bytes":
            advice = f"readings.trim_heap() gives back up to {format_size(self.malloc_free_bytes)}"
            if self.malloc_arenas > _MANY_ARENAS:
                advice += f"; MALLOC_ARENA_MAX=2 has fewer than {self.malloc_arenas} arenas, one for each busy thread"
        elif field == "stack_bytes":
            meaning = f"of {self.threads:,} threads"
        elif field == "mapped_bytes":
            others = "Python's small blocks, " if self.python_bytes is None else ""
            others += f"all of {self.allocator}, " if self.allocator != "malloc" else ""
            meaning = others + meaning
        return meaning, advice

    def __str__(self) -> str:
        lines = [f"resident {format_size(self.resident_bytes)}, of it:"]
        lines += [f"  {part}" for part in self.parts() if part.size_bytes >= _MIN_SHOWN]
        return "\n".join(lines)


_MEANINGS: Final = {
    "python_bytes": ("objects of up to 512 bytes", ""),
    "python_free_bytes": (
        "kept by Python for later",
        "an arena of 1 MiB goes back when its last object goes: make first what stays, or recycle the worker",
    ),
    "malloc_bytes": ("larger objects of Python, and C libraries", ""),
    "malloc_free_bytes": ("kept by malloc for later", ""),
    "mapped_bytes": ("private mmap, allocators of libraries, deep calls", ""),
    "stack_bytes": ("", "have fewer threads; threading.stack_size() bounds what each can touch"),
    "file_bytes": ("code, and mapped files", "the system drops unchanged pages when memory is short"),
    "shared_bytes": (
        "mmap and shared_memory",
        "each process that has touched it counts it: a sum over processes is too high",
    ),
    "meter_bytes": ("of the native ledger, two bytes for sixteen", "MEMTOOLS_METER=rss does without them"),
}


def split_resident() -> ResidentSplit:
    """Return what the resident memory of this process consists of.

    Cost: some 6 ms for a small process, 20 ms and more for each GiB, because the kernel walks all pages, while other
    threads run; Python's arenas are walked under the GIL. With large blocks of malloc that were touched in part 0.3 s
    more for each GiB of other memory, and about 0.1 s at most. So it is for a report, not for a loop.

    Raises:
        ReadingError: if this system has no /proc/self/smaps, as every system but Linux, or it cannot be read.
    """
    if sys.platform != "linux":
        raise ReadingError(0, "only Linux says what resident memory consists of")
    pointers = _stack_pointers()
    by_kind, arenas, allocator, anonymous = _sum_mappings(_read(_SMAPS), pointers.values())
    python = _python_arenas()
    malloc = find_mallinfo2() if allocator == "malloc" else None
    in_heaps = by_kind["malloc"]
    # None of them can be more than what is resident.
    used_in_heaps = min(int(malloc().uordblks), in_heaps) if malloc is not None else in_heaps
    rest = by_kind["anonymous"]
    in_arenas = min(python[0], rest) if python is not None else 0
    free_in_arenas = min(python[1], in_arenas) if python is not None else 0
    mapped_blocks = min(resident_of_blocks(anonymous, malloc), rest - in_arenas) if malloc is not None else 0
    variables = min(_VARIABLES_BYTES * len(running_threads()), rest - in_arenas - mapped_blocks)
    return ResidentSplit(
        resident_bytes=sum(by_kind.values()),
        python_bytes=None if python is None else in_arenas - free_in_arenas,
        python_free_bytes=None if python is None else free_in_arenas,
        malloc_bytes=used_in_heaps + mapped_blocks,
        malloc_free_bytes=in_heaps - used_in_heaps,
        mapped_bytes=rest - in_arenas - mapped_blocks - variables,
        stack_bytes=by_kind["stack"] + variables,
        file_bytes=by_kind["file"],
        shared_bytes=by_kind["shared"],
        meter_bytes=by_kind["meter"],
        threads=len(pointers),
        malloc_arenas=arenas,
        allocator=allocator,
    )


def split_resident_if_known() -> ResidentSplit | None:
    """Return the same; None where the system does not tell it: no Linux, or a /proc that hides it."""
    try:
        return split_resident()
    except ReadingError:
        return None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ReadingError(error.errno or 0, f"{path} cannot be read: {error.strerror}", path) from error


def _stack_pointers() -> dict[str, int]:
    """Return the stack pointer of each thread, 0 where it is running now, or the system does not tell it."""
    found: dict[str, int] = {}
    for task in os.listdir(_TASKS):
        try:
            words = _read(f"{_TASKS}/{task}/syscall").split()
            found[task] = int(words[-2], 16) if len(words) >= _WORDS_WITH_STACK else 0
        except (OSError, ValueError):  # the thread has ended, or the kernel has no such file
            found[task] = 0
    return found


@record
class _Mapping:
    start: int
    end: int
    access: str
    inode: int
    name: str
    resident: int


def _mappings(smaps: bytes) -> Iterator[_Mapping]:
    find_header = re.compile(_HEADER).fullmatch
    header: re.Match[bytes] | None = None
    for line in smaps.splitlines():
        if line.startswith(b"Rss:") and header is not None:
            start, end, access, inode, name = header.groups()
            size = int(line.split()[1]) << 10
            yield _Mapping(int(start, 16), int(end, 16), access.decode(), int(inode), os.fsdecode(name), size)
            header = None
        elif (found := find_header(line)) is not None:
            header = found


def _sum_mappings(smaps: bytes, pointers: Iterable[int]) -> tuple[dict[str, int], int, str, list[tuple[int, int, int]]]:
    """Return resident bytes by kind of mapping, the number of malloc's arenas, the allocator, anonymous mappings."""
    by_kind: dict[str, int] = dict.fromkeys(("malloc", "stack", "meter", "shared", "file", "anonymous"), 0)
    arenas, allocator = 1, "malloc"
    anonymous: list[tuple[int, int, int]] = []
    with _open_memory() as memory:
        kind_of = _Classifier([pointer for pointer in pointers if pointer], memory)
        for mapping in _mappings(smaps):
            kind = kind_of(mapping)
            by_kind[kind] += mapping.resident
            if kind == "anonymous" and mapping.resident:
                anonymous.append((mapping.start, mapping.end, mapping.resident))
            arenas += kind == "malloc" and mapping.name != "[heap]"
            if kind == "file":
                allocator = next((name for name in _OTHER_ALLOCATORS if name in mapping.name), allocator)
    return by_kind, arenas, allocator, anonymous


@contextmanager
def _open_memory() -> Generator[int | None]:
    try:
        memory = os.open(_MEMORY, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield memory
    finally:
        os.close(memory)


class _Classifier:
    """Tells whose each mapping is; called with all of them in the order of their addresses.

    Args:
        pointers: the stack pointers of threads.
        memory: a descriptor of /proc/self/mem; without one malloc's arenas are not recognised.
    """

    def __init__(self, pointers: list[int], memory: int | None) -> None:
        native = _native()
        self._pointers = pointers
        self._tables: list[tuple[int, int]] = [] if native is None else native.tables()
        self._memory = memory
        self._before: _Mapping | None = None

    def __call__(self, mapping: _Mapping) -> str:
        kind = self._by_name(mapping) or self._by_place(mapping)
        self._before = mapping
        return kind

    def _by_name(self, mapping: _Mapping) -> str:
        name = mapping.name
        if name == "[heap]" or name.startswith("[anon: glibc: malloc"):
            return "malloc"
        if name.startswith(("[stack", "[anon: glibc: pthread stack")):
            return "stack"
        if name.startswith(_SHARED) or ("s" in mapping.access and not mapping.inode):
            return "shared"
        return "file" if mapping.inode or name.startswith(("[v", "[uprobes")) else ""

    def _by_place(self, mapping: _Mapping) -> str:
        if any(mapping.start < end and start < mapping.end for start, end in self._tables):
            return "meter"
        if any(mapping.start <= pointer < mapping.end for pointer in self._pointers):
            return "stack"
        if self._is_heap(mapping):
            return "malloc"
        return "stack" if self._is_behind_guard(mapping) else "anonymous"

    def _is_heap(self, mapping: _Mapping) -> bool:
        if self._memory is None or mapping.start % _HEAP_BYTES or "w" not in mapping.access:
            return False
        try:
            start = os.pread(self._memory, 32, mapping.start)
        except OSError:
            return False
        if len(start) < 32:
            return False
        # heap_info of glibc's malloc/arena.c: ar_ptr, prev, size, mprotect_size.
        arena, _, size, writable = struct.unpack("@QQQQ", start)
        is_end = mapping.start + writable in (mapping.end, mapping.start + _HEAP_BYTES)
        return bool(arena) and 0 < size <= writable <= _HEAP_BYTES and is_end

    def _is_behind_guard(self, mapping: _Mapping) -> bool:
        before = self._before
        if before is None or before.end != mapping.start or before.access != "---p" or before.inode:
            return False
        return before.end - before.start <= _MAX_GUARD_BYTES


def _python_arenas() -> tuple[int, int] | None:
    """Return the bytes of Python's arenas, and those of them that are free; None where it has none."""
    text = _python_allocator_statistics()
    sizes = [re.search(pattern, text) for pattern in (_ARENAS, _AVAILABLE, _UNUSED)]
    arenas, available, unused = (int(size[1].replace(b",", b"")) if size is not None else 0 for size in sizes)
    return (arenas, available + unused) if arenas else None


def _python_allocator_statistics() -> bytes:
    # What `sys._debugmallocstats` prints to standard error, printed into a buffer.
    import ctypes  # loaded on first need

    functions = _stdio()
    if functions is None:
        return b""
    print_statistics, open_memstream, fclose, free = functions
    buffer, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = open_memstream(ctypes.byref(buffer), ctypes.byref(size))
    if not stream:
        return b""
    native = _native()
    try:
        if native is not None:  # its hooks hide whose blocks they pass on
            native.call_unhooked(ctypes.cast(print_statistics, ctypes.c_void_p).value, stream)
        else:
            print_statistics(stream)
    finally:
        fclose(stream)
    try:
        return ctypes.string_at(buffer.value, size.value) if buffer.value else b""
    finally:
        free(buffer)


def _native() -> Any:  # Any: the extension, which this layer does not know
    return sys.modules.get("memtools.ledger._native")  # None where it was not built, or not needed so far


@cache
def _stdio() -> tuple[Any, Any, Any, Any] | None:  # Any: functions of C
    import ctypes

    library = ctypes.CDLL(None)
    try:
        print_statistics: Any = ctypes.pythonapi._PyObject_DebugMallocStats
        open_memstream, fclose, free = library.open_memstream, library.fclose, library.free
    except AttributeError:
        return None
    print_statistics.argtypes, print_statistics.restype = [ctypes.c_void_p], ctypes.c_int
    open_memstream.argtypes, open_memstream.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_void_p
    fclose.argtypes = free.argtypes = [ctypes.c_void_p]
    return print_statistics, open_memstream, fclose, free
