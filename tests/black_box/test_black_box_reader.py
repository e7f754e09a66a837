"""Reading files that are whole, cut, garbage, or made to mislead: the reader reports, and never crashes."""

import dataclasses
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import html5lib
import pytest

from memtools.black_box import PostMortem, read_black_box
from memtools.black_box._file import BoxFile, set_reported
from memtools.black_box._layout import (
    CHECKSUM_AT,
    COUNTER,
    ENDED,
    HOT,
    IN_USE,
    IS_OPEN,
    PAGE,
    SECTIONS,
    SECTIONS_AT,
    SIZE,
    STATE_AT,
    THREAD,
    header_checksum,
    pack_account,
)
from memtools.commands._postmortem import postmortem_page
from memtools.readings._shares import process_start

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no black boxes on Windows"),
]

MIB = 2**20
ESCAPES = "POST \x1b[2J\x1b]0;title\x07\u202e\n\r/import"


class Box:
    """A file as a process would have left it."""

    def __init__(self, folder: Path, limit: int | None = None, cgroup: object = None) -> None:
        self.path = folder / "service.1.1.box"
        description = {
            "name": "service", "command": ESCAPES, "resident_at_open": 10 * MIB, "cgroup_limit": limit,
            "cgroup": cgroup,
        }  # fmt: skip
        file = BoxFile.create(str(self.path), description)
        file.publish(str(self.path))
        self._file = file

    def write(self, at: int, packed: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(packed)

    def hot(self, change: int = 0, counter: int = 0, flushing: int = 0, flushed: int = 0, **more: int) -> None:
        unsure, lost, stopped = (more.get(name, 0) for name in ("unsure", "lost", "stopped"))
        packed = HOT.pack(change, counter, flushing, flushed, 8, unsure, lost, stopped, 1)
        self.write(SECTIONS["hot"].at, packed)

    def counter(self, number: int, own: int, account: int = 0, state: int = IN_USE | IS_OPEN, parent: int = 0) -> None:
        packed = COUNTER.pack(own, own, parent, account, number, state)
        self.write(SECTIONS["counters"].place(number), packed)

    def account(self, number: int, name: str, parent: int = 0, kind: str = "scope") -> None:
        self.write(SECTIONS["accounts"].place(number), pack_account(parent, kind, name))

    def reading(self, resident: int, counted: int | None = None, level: int = 0, usage: int | None = None) -> None:
        self._file.write_reading(resident, 1000 * MIB, usage, counted, 3, level)

    def words(self, text: str) -> None:
        self._file.write_last_words(text)

    def close(self) -> None:
        if self._file.fd >= 0:
            self._file.close()

    def die(self) -> None:
        """Take the process for gone: its id is now that of another one."""
        self._file.close()
        self.write(STATE_AT + 4, struct.pack("<Q", 1))  # the start of the process
        head = bytearray(self.path.read_bytes()[:PAGE])
        self.write(CHECKSUM_AT, struct.pack("<I", header_checksum(bytes(head))))

    def read(self) -> PostMortem:
        return read_black_box(self.path)


@pytest.fixture
def empty(tmp_path: Path) -> Generator[Box]:
    """The box of this process, in which nothing has been written yet."""
    found = Box(tmp_path)
    yield found
    found.close()


@pytest.fixture
def box(empty: Box) -> Box:
    """What a process has left that was killed: it held something for three owners of two names, and for none."""
    found = empty
    found.hot(change=5, counter=2)
    found.counter(0, 100)
    found.counter(1, 7 * MIB, account=1)
    found.counter(2, 50 * MIB, account=2)
    found.counter(3, 3 * MIB, account=2, state=IN_USE)
    found.account(1, "service")
    found.account(2, ESCAPES, parent=1)
    found.write(SECTIONS["threads"].place(1), THREAD.pack(4321, 2, 0))
    for number in range(3):
        found.reading((100 + number) * MIB, counted=60 * MIB)
    found.words("first\x1b[31m")
    found.die()
    return found


def everything(found: PostMortem) -> str:
    text = found.text() + found.text(ascii_only=True, width=1) + found.summary + repr(found.advice())
    assert text.replace("\n", "").isprintable()
    assert json.loads(json.dumps(found.to_dict()))["pid"] == found.pid
    page = postmortem_page(found, (found,))
    assert "".join(page.split("\n")).isprintable()
    html5lib.HTMLParser(strict=True).parse(page)  # raises for each parse error of the standard
    return text


class TestWhole:
    def test_owners_are_summed_by_name(self, box: Box) -> None:
        found = box.read()

        assert found.counted_bytes == 60 * MIB + 105
        assert [(each.path, each.held_bytes, each.open_owners) for each in found.holdings] == [
            (("service", ESCAPES), 53 * MIB + 5, 1),
            (("service",), 7 * MIB, 1),
            (("<no owner>",), 100, 0),
        ]
        assert found.single_owner is not None
        assert (found.single_owner.held_bytes, found.single_owner.number) == (50 * MIB + 5, 2)
        assert found.charged == ESCAPES
        assert found.threads == ((4321, ESCAPES),)
        assert found.verdict == "killed"
        assert found.notes == ()

    def test_counter_in_a_flush_has_what_it_will_hold(self, box: Box) -> None:
        box.hot(change=999, counter=2, flushing=3, flushed=51 * MIB)

        found = box.read()
        assert found.holdings[0].held_bytes == 54 * MIB
        assert found.counted_bytes == 61 * MIB + 100

    def test_text_has_no_character_that_acts_on_a_terminal(self, box: Box) -> None:
        text = everything(box.read())

        assert "\\x1b[2J" in text
        assert "first\\x1b[31m" in text
        assert "resident 102.0 MiB of 1000.0 MiB (10.2%), normal" in text

    def test_newest_last_words_are_shown(self, empty: Box) -> None:
        box = empty
        box.words("first")
        box.words("second")
        newest = SECTIONS["last_words"].place(0)
        assert box.read().last_words == "second"

        box.write(newest + 20, b"torn")
        assert box.read().last_words == "first"

    def test_box_of_a_running_process_is_alive(self, empty: Box) -> None:
        assert process_start(os.getpid())
        found = empty.read()
        assert (found.verdict, found.why, found.advice()) == ("alive", "its process is there", ())

    def test_regular_end_is_told(self, box: Box) -> None:
        box.write(STATE_AT, struct.pack("<I", ENDED))
        assert box.read().verdict == "ended"

    def test_ring_keeps_the_newest_readings_in_order(self, empty: Box) -> None:
        box = empty
        for number in range(4100):
            box.reading(number)
        found = box.read()
        assert [each.resident_bytes for each in found.readings] == list(range(4, 4100))
        everything(found)


class TestVerdicts:
    def test_memory_near_the_limit_makes_it_likely(self, empty: Box) -> None:
        box = empty
        box.reading(960 * MIB, level=2)
        box.die()
        found = box.read()
        assert found.verdict == "oom-likely"
        assert "about 960.0 MiB were in use or asked for, of a limit of 1000.0 MiB" in found.why

    def test_bytes_counted_since_the_last_reading_add_up(self, box: Box) -> None:
        box.counter(2, 950 * MIB, account=2)
        assert box.read().verdict == "oom-likely"

    @pytest.mark.parametrize(("limit", "verdict"), [(1000 * MIB, "oom-likely"), (2000 * MIB, "killed")])
    def test_use_of_the_cgroup_counts_for_its_own_limit(self, tmp_path: Path, limit: int, verdict: str) -> None:
        box = Box(tmp_path, limit=limit)
        box.reading(200 * MIB, usage=970 * MIB)
        box.die()
        assert box.read().verdict == verdict

    @pytest.mark.parametrize(("kills", "verdict"), [(3, "killed"), (4, "oom-killed")])
    def test_kills_of_the_cgroup_make_it_certain(self, tmp_path: Path, kills: int, verdict: str) -> None:
        folder = tmp_path / "cgroup"
        folder.mkdir()
        (folder / "memory.events").write_text(f"oom 9\noom_kill {kills}\n")
        box = Box(tmp_path, cgroup=[2, str(folder), folder.stat().st_ino])
        box.reading(200 * MIB)
        box.die()
        found = box.read()
        assert found.verdict == verdict
        everything(found)

        # What the next start has found counts, and not what has come later.
        with open(box.path, "r+b") as file:
            set_reported(file.fileno(), 3)
        assert box.read().verdict == "killed"

    @pytest.mark.parametrize("cgroup", [None, [], [3, "/", 1], [2, 3, 4], [2, "/none", 5], [2, "/\0", 5], {"a": 1}])
    def test_description_of_the_cgroup_is_not_trusted(self, tmp_path: Path, cgroup: object) -> None:
        box = Box(tmp_path, cgroup=cgroup)
        box.reading(200 * MIB)
        box.die()
        assert box.read().verdict == "killed"

    def test_native_memory_is_told_from_owners(self, empty: Box) -> None:
        box = empty
        box.hot()
        box.counter(0, MIB)
        box.reading(500 * MIB, counted=MIB)
        box.die()
        found = box.read()
        assert found.native_bytes == 489 * MIB
        assert found.is_mostly_native
        assert "more in no owner's blocks: native memory" in everything(found)
        assert "memray run --native" in found.advice()[0]

    @pytest.mark.parametrize(
        ("state", "kind", "advice"),
        [
            (IN_USE | IS_OPEN, "call", "one call held it: give service > work a budget"),
            (IN_USE, "call", "service > work holds what its ended calls have left"),
        ],
    )
    def test_advice_names_the_owner(self, empty: Box, state: int, kind: str, advice: str) -> None:
        box = empty
        box.hot()
        box.counter(1, 100 * MIB, account=2, state=state)
        box.account(1, "service")
        box.account(2, "work", parent=1, kind=kind)
        box.die()
        found = box.read()
        assert advice in found.advice()[0]
        assert advice in everything(found)

    def test_without_ledger_advice_says_what_is_missing(self, empty: Box) -> None:
        box = empty
        box.die()
        found = box.read()
        assert "no reading was written" in everything(found)
        assert "`python -m memtools info`" in found.advice()[0]


class TestDoubt:
    @pytest.mark.parametrize(
        ("field", "note"),
        [
            ("unsure", "several records were being written"),
            ("lost", "1 blocks were not counted"),
            ("stopped", "the ledger had stopped counting"),
        ],
    )
    def test_figures_that_may_be_wrong_are_noted(self, box: Box, field: str, note: str) -> None:
        box.hot(counter=2, **{field: 1})
        found = box.read()
        assert note in found.notes[0]
        assert note in everything(found)

    def test_damaged_records_are_left_out_and_noted(self, box: Box) -> None:
        box.write(SECTIONS["accounts"].place(2) + 20, b"torn")
        box.write(SECTIONS["readings"].place(1) + 20, b"torn")
        found = box.read()
        assert len(found.readings) == 2
        assert set(found.notes) == {"the name of account 2 is damaged", "1 readings are damaged"}
        assert found.holdings[0].path == ("<account 2>",)

    def test_accounts_in_a_circle_end(self, box: Box) -> None:
        box.account(1, "service", parent=2)
        found = box.read()
        assert found.notes.count("accounts are their own ancestors: the file is damaged") >= 1
        everything(found)

    def test_deep_accounts_are_cut(self, box: Box) -> None:
        for number in range(1, 4000):
            box.account(number, str(number), parent=number + 1)
        assert len(box.read().holdings[0].path) == 64

    def test_negative_and_huge_figures_are_shown(self, box: Box) -> None:
        box.hot(change=-(2**63), counter=2)
        box.counter(1, 2**63 - 1, account=1)
        found = box.read()
        assert "owners have less than nothing" in found.notes[-1]
        everything(found)

    @pytest.mark.parametrize("length", [PAGE, PAGE + 1, 2 * PAGE, 13_000, 600_001, SIZE - 1])
    def test_file_that_was_cut_is_read_as_far_as_it_goes(self, box: Box, length: int) -> None:
        os.truncate(box.path, length)
        found = box.read()
        assert f"the file was cut: {length:,} of {SIZE:,} bytes" in found.notes
        everything(found)

    def test_damaged_header_is_noted(self, box: Box) -> None:
        box.write(16, b"\xff")
        assert "the header is damaged, so what it says may be wrong" in box.read().notes

    def test_damaged_description_is_noted(self, box: Box) -> None:
        box.write(260, b"\0")
        assert "the description of the process is damaged" in box.read().notes

    def test_sections_elsewhere_are_not_followed(self, box: Box) -> None:
        for number, packed in enumerate(
            (struct.pack("<QII", 2**63, 4096, 1), struct.pack("<QII", 0, 16, 2**32 - 1), struct.pack("<QII", 64, 0, 1))
        ):
            box.write(SECTIONS_AT + 16 * number, packed)
        head = box.path.read_bytes()[:PAGE]
        box.write(CHECKSUM_AT, struct.pack("<I", header_checksum(head)))
        found = box.read()
        assert sum("is not where it can be" in note for note in found.notes) == 3
        everything(found)

    def test_garbage_in_every_place_never_crashes(self, box: Box) -> None:
        whole = box.path.read_bytes()
        chance = random.Random(1)
        for _ in range(30):
            damaged = bytearray(whole)
            for _ in range(chance.randrange(1, 200)):
                section = chance.choice(list(SECTIONS.values()))
                places = chance.randrange(PAGE), section.at + chance.randrange(PAGE), chance.randrange(SIZE)
                damaged[min(max(chance.choice(places), 12), SIZE - 1)] = chance.randrange(256)
            box.path.write_bytes(damaged)
            everything(box.read())

    def test_file_of_noise_behind_its_mark_never_crashes(self, box: Box) -> None:
        box.path.write_bytes(box.path.read_bytes()[:256] + random.Random(2).randbytes(SIZE - 256))
        everything(box.read())


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "is empty"),
            (b"\0" * SIZE, "is no black box of memtools"),
            (b"MEMTBOX1" + bytes(100), "was cut inside of its header, to 108 bytes"),
            (b"MEMTBOX1" + struct.pack("<I", 2) + bytes(PAGE), "has version 2 of the format"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, content: bytes, why: str) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=why):
            read_black_box(path)

    def test_missing_file_and_pipe_do_not_hang(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_black_box(tmp_path / "none")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises((ValueError, OSError)):
            read_black_box(tmp_path / "pipe")

    def test_reader_needs_neither_psutil_nor_extensions(self, box: Box) -> None:
        program = (
            "import sys; sys.modules['psutil'] = None; sys.modules['memtools.ledger._native'] = None\n"
            "from memtools.black_box import read_black_box\n"
            f"print(read_black_box({str(box.path)!r}).verdict)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "killed\n"


def test_post_mortem_is_a_frozen_record(box: Box) -> None:
    found = box.read()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.pid = 2  # type: ignore[misc]
