"""Hold memory of one kind, and print by what the resident memory has grown, as JSON.

usage: hold_memory.py KIND [scope]    with `scope` under the native ledger
"""

import contextlib
import ctypes
import json
import mmap
import sys
import tempfile
import threading
from collections.abc import Callable

from memtools import memory_scope
from memtools.readings import resident_bytes, split_resident, trim_heap

MIB = 2**20
SMALL, LARGE = 400, 20_000
kept: list[object] = []


def fragment(size: int, total: int) -> None:
    blocks = [bytes(size) for _ in range(total // size)]
    kept.extend(blocks[::50])


def leak_in_c() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for _ in range(5000):
        ctypes.memset(library.malloc(10_000), 1, 10_000)


def hold_block(size: int, touched: int) -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    ctypes.memset(library.malloc(size) + 20 * MIB, 1, touched)


def map_memory() -> None:
    mapping = mmap.mmap(-1, 50 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.write(bytes(50 * MIB).replace(b"\0", b"x"))
    kept.append(mapping)


def share_memory() -> None:
    mapping = mmap.mmap(-1, 50 * MIB)
    mapping.write(bytes(50 * MIB).replace(b"\0", b"x"))
    kept.append(mapping)


def read_mapped_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(50 * MIB))
        file.flush()
        mapping = mmap.mmap(file.fileno(), 50 * MIB, access=mmap.ACCESS_READ)
    assert sum(mapping[offset] for offset in range(0, 50 * MIB, 4096)) == 0
    kept.append(mapping)


def start_threads() -> None:
    ready = threading.Semaphore(0)

    def compare(depth: int) -> int:
        # Each level goes through C, as json, sorted, a descriptor or a regular expression do.
        if depth == 0:
            ready.release()
            threading.Event().wait()
        return max((depth,), key=lambda _: compare(depth - 1))

    for _ in range(200):
        threading.Thread(target=compare, args=(60,), daemon=True).start()
    for _ in range(200):
        ready.acquire()


def hold_objects() -> None:
    kept.extend(bytes(SMALL) for _ in range(50 * MIB // SMALL))


KINDS: dict[str, Callable[[], object]] = {
    "python free": lambda: fragment(SMALL, 100 * MIB),
    "malloc free": lambda: fragment(LARGE, 100 * MIB),
    "c library": leak_in_c,
    "mmap": map_memory,
    "untouched": lambda: (hold_block(200 * MIB, 0), map_memory()),
    "half touched": lambda: (hold_block(200 * MIB, 100 * MIB), map_memory(), hold_objects()),
    "shared": share_memory,
    "threads": start_threads,
    "page cache": read_mapped_file,
    "objects": hold_objects,
}


def main() -> None:
    split_resident()  # what it needs itself it has had from now on
    with memory_scope("all", meter="native") if "scope" in sys.argv else contextlib.nullcontext():
        before = split_resident()
        KINDS[sys.argv[1]]()
        after = split_resident()
        grown = {part.name: part.size_bytes for part in after.parts(before)}
        advice = {part.name: part.advice for part in after.parts(before)}
        resident = resident_bytes()
        trim_heap()
        given_back = resident - resident_bytes()
    figures = {"grown": grown, "advice": advice, "resident": after.resident_bytes, "statm": resident}
    print(json.dumps({**figures, "given_back": given_back}), flush=True)


main()
