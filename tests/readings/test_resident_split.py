"""What resident memory consists of, in programs that hold memory of one kind each."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from memtools.errors import ReadingError
from memtools.readings import ResidentSplit, _resident, resident_bytes, split_resident

MIB = 2**20
PROGRAM = Path(__file__).parent / "programs" / "hold_memory.py"
PARTS = (
    "python_bytes", "python_free_bytes", "malloc_bytes", "malloc_free_bytes", "mapped_bytes", "stack_bytes",
    "file_bytes", "shared_bytes", "meter_bytes",
)  # fmt: skip
HAS_ARENAS = split_resident().python_bytes is not None if sys.platform == "linux" else False

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what resident memory consists of")


def hold(kind: str, *words: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, PROGRAM, kind, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class TestPrograms:
    """Each program has memory of one kind, most of it about 50 or 100 MiB."""

    @pytest.mark.parametrize("words", [(), ("scope",)], ids=["alone", "in a scope"])
    @pytest.mark.parametrize(
        ("kind", "part", "least"),
        [
            ("c library", "in use of malloc", 46),
            ("mmap", "other mappings", 48),
            ("shared", "shared memory", 50),
            ("page cache", "files and libraries", 50),
            ("threads", "stacks of threads", 8),
            pytest.param("malloc free", "free in malloc", 90, marks=pytest.mark.once),
        ],
    )
    def test_part_that_grows_is_named(self, kind: str, part: str, least: int, words: tuple[str, ...]) -> None:
        grown = hold(kind, *words)["grown"]

        assert next(iter(grown)) == part
        assert grown[part] >= least * MIB

    @pytest.mark.skipif(not HAS_ARENAS, reason="this Python's allocator has no arenas")
    @pytest.mark.parametrize("words", [(), ("scope",)], ids=["alone", "in a scope"])
    @pytest.mark.parametrize(
        ("kind", "part", "least"),
        [("python free", "free in Python's arenas", 90), ("objects", "Python's small blocks", 50)],
    )
    def test_arenas_are_told_by_use(self, kind: str, part: str, least: int, words: tuple[str, ...]) -> None:
        grown = hold(kind, *words)["grown"]

        assert next(iter(grown)) == part
        assert grown[part] >= least * MIB

    @pytest.mark.parametrize("words", [(), ("scope",)], ids=["alone", "in a scope"])
    @pytest.mark.parametrize(("kind", "touched"), [("untouched", 0), ("half touched", 100)])
    def test_untouched_part_of_a_block_is_not_in_use(self, kind: str, touched: int, words: tuple[str, ...]) -> None:
        grown = hold(kind, *words)["grown"]

        assert grown["in use of malloc"] == pytest.approx(touched * MIB, abs=4 * MIB)
        assert grown["other mappings"] == pytest.approx(50 * MIB, abs=4 * MIB)

    def test_advice_on_malloc_says_what_a_trim_gives_back(self) -> None:
        found = hold("malloc free")

        free = found["grown"]["free in malloc"]
        assert "trim_heap()" in found["advice"]["free in malloc"]
        assert found["given_back"] == pytest.approx(free, rel=0.1)

    def test_parts_add_up_to_what_the_kernel_counts(self) -> None:
        found = hold("mmap")

        assert found["resident"] == pytest.approx(found["statm"], abs=2 * MIB)

    def test_other_allocators_of_python_leave_its_part_unknown(self) -> None:
        found = hold("mmap", PYTHONMALLOC="malloc")

        assert "Python's small blocks" not in found["grown"]
        assert found["grown"]["other mappings"] >= 48 * MIB


def test_every_part_is_a_size_and_together_they_are_all() -> None:
    split = split_resident()

    sizes = [getattr(split, name) or 0 for name in PARTS]
    assert min(sizes) >= 0
    assert sum(sizes) == split.resident_bytes
    assert split.resident_bytes == pytest.approx(resident_bytes(), rel=0.1)


def test_threads_and_their_stacks_are_counted() -> None:
    end = threading.Event()
    before = split_resident().threads
    threads = [threading.Thread(target=end.wait) for _ in range(3)]
    for thread in threads:
        thread.start()

    split = split_resident()

    end.set()
    for thread in threads:
        thread.join()
    assert split.threads == before + 3


def test_text_shows_the_parts_of_a_mib_and_more() -> None:
    split = ResidentSplit(
        resident_bytes=30 * MIB,
        python_bytes=10 * MIB,
        python_free_bytes=1000,
        malloc_bytes=4 * MIB,
        malloc_free_bytes=15 * MIB,
        mapped_bytes=0,
        stack_bytes=0,
        file_bytes=MIB - 1000,
        shared_bytes=0,
        meter_bytes=0,
        threads=1,
        malloc_arenas=9,
    )

    advice = "readings.trim_heap() gives back up to 15.0 MiB; MALLOC_ARENA_MAX=2 has fewer than 9 arenas"
    advice += ", one for each busy thread"
    assert str(split).splitlines() == [
        "resident 30.0 MiB, of it:",
        f"  free in malloc 15.0 MiB: kept by malloc for later; {advice}",
        "  Python's small blocks 10.0 MiB: objects of up to 512 bytes",
        "  in use of malloc 4.0 MiB: larger objects of Python, and C libraries",
    ]
    assert [part.size_bytes for part in split.parts(split)] == [0] * len(PARTS)


def test_system_without_the_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_resident, "_SMAPS", "/nowhere/smaps")

    with pytest.raises(ReadingError, match="/nowhere/smaps cannot be read"):
        split_resident()


def test_another_allocator_is_known_by_its_library() -> None:
    smaps = b"""\
7f0000000000-7f0000100000 r-xp 00000000 fe:00 1234                       /usr/lib/x86_64-linux-gnu/libjemalloc.so.2
Size:               1024 kB
Rss:                 512 kB
7f0001000000-7f0003000000 rw-p 00000000 00:00 0
Size:              32768 kB
Rss:               20480 kB
7f0004000000-7f0004001000 ---p 00000000 00:00 0
Rss:                   0 kB
7f0004001000-7f0004801000 rw-p 00000000 00:00 0
Rss:                  64 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                 100 kB
"""
    by_kind, arenas, allocator, anonymous = _resident._sum_mappings(smaps, [])

    assert {kind: size >> 10 for kind, size in by_kind.items() if size} == {
        "anonymous": 20480, "file": 512, "stack": 164,
    }  # fmt: skip
    assert (arenas, allocator) == (1, "jemalloc")
    assert anonymous == [(0x7F0001000000, 0x7F0003000000, 20480 << 10)]
