"""Looking into the box of a process that runs: every figure is one that its owner had, however much is written."""

import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from memtools import memory_scope
from memtools.black_box import BlackBox, _reader, read_black_box
from memtools.black_box._file import BoxFile
from memtools.black_box._layout import COUNTER, HOT, IN_USE, IS_OPEN, SECTIONS, pack_account
from memtools.black_box._live import LiveBox
from memtools.ledger import native_reason
from memtools.readings import Level, Reading

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no black boxes on Windows")
native = pytest.mark.skipif(bool(native_reason()), reason="only the native ledger writes owners")

MIB = 2**20
WRITING = Path(__file__).with_name("programs") / "writing.py"
BASE, SWING = 1 << 20, 1 << 18  # of that program
SLACK = 1 << 16  # for what else its owners allocate
LOOKS = 10_000
TOTALS = 300  # different ones: the program has gone on meanwhile
TIMEOUT_S = 60


class Writer:
    """The file of this process, as a ledger writes it."""

    def __init__(self, folder: Path) -> None:
        self._file = BoxFile.create(str(folder / "x"), {"name": "service"})
        self._file.publish(str(folder / "service.1.1.box"))
        self.path = self._file.path
        self.fd = self._file.fd

    def hot(self, change: int = 0, counter: int = 0, *, flushing: int = 0, unsure: int = 0, used: int = 8) -> None:
        os.pwrite(self.fd, HOT.pack(change, counter, flushing, 0, used, unsure, 0, 0, 1), SECTIONS["hot"].at)

    def counter(self, number: int, own: int, account: int, state: int = IN_USE | IS_OPEN) -> None:
        os.pwrite(self.fd, COUNTER.pack(own, own, 0, account, number, state), SECTIONS["counters"].place(number))

    def account(self, number: int, name: str, parent: int = 0) -> None:
        os.pwrite(self.fd, pack_account(parent, "scope", name), SECTIONS["accounts"].place(number))

    def reading(self, resident: int) -> None:
        self._file.write_reading(resident, 1000 * MIB, None, None, None, Level.WARNING)

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def writer(tmp_path: Path) -> Generator[Writer]:
    made = Writer(tmp_path)
    made.hot()
    made.account(1, "service")
    made.account(2, "import", parent=1)
    made.counter(1, 100, account=1)
    made.counter(2, 200, account=2)
    yield made
    made.close()


@pytest.fixture
def live(writer: Writer) -> Generator[LiveBox]:
    with LiveBox(writer.path) as box:
        yield box


def at_read(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
    """Have the writer do something right after a read of the reader: the first has number 0."""
    read = os.pread
    reads = 0

    def pread(fd: int, size: int, at: int) -> bytes:
        nonlocal reads
        found = read(fd, size, at)
        if reads == number:
            action()
        reads += 1
        return found

    monkeypatch.setattr(_reader.os, "pread", pread)


@pytest.mark.once
class TestOrder:
    """The writer goes on in between, in the order of its stores."""

    @pytest.mark.parametrize("number", range(7))
    def test_flush_and_switch_between_reads_lose_nothing(
        self, number: int, writer: Writer, live: LiveBox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer.hot(change=5000, counter=1)

        def flush_and_switch() -> None:
            writer.counter(1, 5100, account=1)
            writer.hot(change=30, counter=2)

        at_read(monkeypatch, number, flush_and_switch)
        held = live.look().held
        assert held[1] == 5100
        assert held[2] in (200, 230)

    @pytest.mark.parametrize("number", range(7))
    def test_flush_of_the_charged_counter_counts_once(
        self, number: int, writer: Writer, live: LiveBox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer.hot(change=-90, counter=1)

        def flush() -> None:
            writer.counter(1, 10, account=1)
            writer.hot(change=7, counter=1)

        at_read(monkeypatch, number, flush)
        assert live.look().held[1] in (10, 17)

    def test_flush_that_does_not_end_leaves_the_record(self, writer: Writer, live: LiveBox) -> None:
        writer.hot(change=5000, counter=1, flushing=2)

        assert live.look().held == {1: 100, 2: 200}

    def test_change_of_many_records_is_waited_for(
        self, writer: Writer, live: LiveBox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer.hot(unsure=1)
        assert live.look().notes == ("several records were being written: figures of owners may be wrong",)

        at_read(monkeypatch, 4, writer.hot)
        found = live.look()
        assert (found.notes, found.counted_bytes) == ((), 300)

    def test_less_than_nothing_is_shown_as_nothing(self, writer: Writer, live: LiveBox) -> None:
        writer.counter(2, -50, account=2)  # freed, and allocated without the GIL before

        assert live.look().held == {1: 100, 2: 0}

    def test_charged_counter_out_of_range_is_left_out(self, writer: Writer, live: LiveBox) -> None:
        writer.hot(change=7, counter=2**32 - 1, used=2**32 - 1)

        assert live.look().counted_bytes == 300

    def test_post_mortem_of_a_living_process_is_consistent(
        self, writer: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer.hot(change=5000, counter=1)

        def flush() -> None:
            writer.counter(1, 5100, account=1)
            writer.hot(counter=2)

        at_read(monkeypatch, 1, flush)
        found = read_black_box(writer.path)
        assert (found.verdict, found.counted_bytes) == ("alive", 5300)
        assert found.charged == "service"


@pytest.mark.once
class TestLooks:
    def test_sums_follow_every_change(self, writer: Writer, live: LiveBox) -> None:
        assert live.look().open_owners == {1: 1, 2: 1}
        writer.counter(3, 7, account=2)
        writer.counter(1, 0, account=0, state=0)
        assert live.look().held == {1: 0, 2: 207}
        writer.counter(3, 9, account=2, state=IN_USE)
        found = live.look()
        assert (found.held, found.counted_bytes) == ({1: 0, 2: 209}, 209)
        assert found.open_owners == {1: 0, 2: 1}
        writer.hot(used=2)
        assert live.look().held == {1: 0, 2: 0}

    def test_names_are_read_anew_where_they_change(self, writer: Writer, live: LiveBox) -> None:
        assert live.path_of(2) == ("service", "import")
        writer.account(2, "export", parent=1)
        assert live.path_of(2) == ("service", "export")
        os.pwrite(writer.fd, b"torn", SECTIONS["accounts"].place(2) + 20)
        assert live.path_of(2) == ("service", "export")
        assert (live.path_of(0), live.path_of(77), live.path_of(10**6)) == (
            ("<no owner>",), ("<account 77>",), ("<account 1000000>",),
        )  # fmt: skip

    def test_only_new_readings_are_read(self, writer: Writer, live: LiveBox, monkeypatch: pytest.MonkeyPatch) -> None:
        live.update_readings()
        assert not live.readings
        for number in range(3):
            writer.reading(number)
            live.update_readings()
            live.update_readings()
        assert [each.resident_bytes for each in live.readings] == [0, 1, 2]
        for number in range(3, 5000):  # more than the ring has room for
            writer.reading(number)
        live.update_readings()
        assert [each.resident_bytes for each in live.readings] == list(range(4100, 5000))
        writer.reading(5000)
        monkeypatch.setattr(live, "_read_ring", None)
        live.update_readings()
        assert live.readings[-1].resident_bytes == 5000

    def test_reading_in_the_middle_of_a_write_comes_later(self, writer: Writer, live: LiveBox) -> None:
        writer.reading(1)
        live.update_readings()
        place = SECTIONS["readings"].place(1)
        writer.reading(2)
        whole = os.pread(writer.fd, 64, place)
        os.pwrite(writer.fd, struct.pack("<I", zlib.crc32(b"torn")), place)
        live.update_readings()
        assert len(live.readings) == 1
        os.pwrite(writer.fd, whole, place)
        live.update_readings()
        assert [each.resident_bytes for each in live.readings] == [1, 2]

    def test_state_is_that_of_the_process(self, writer: Writer, live: LiveBox) -> None:
        assert live.state() == "alive"
        os.pwrite(writer.fd, struct.pack("<I", 2), 28)
        assert live.state() == "ended"

    def test_file_that_was_cut_is_noted(self, writer: Writer, live: LiveBox) -> None:
        os.truncate(writer.path, 5000)
        assert live.look().notes == ("the file was cut",)

    def test_file_without_a_ledger_is_noted(self, writer: Writer, live: LiveBox) -> None:
        os.pwrite(writer.fd, bytes(HOT.size), SECTIONS["hot"].at)
        found = live.look()
        assert (found.counted_bytes, found.notes) == (None, ("no ledger counts its owners",))

    def test_trouble_of_the_ledger_is_noted(self, writer: Writer, live: LiveBox) -> None:
        os.pwrite(writer.fd, HOT.pack(0, 0, 0, 0, 8, 0, 3, 1, 1), SECTIONS["hot"].at)
        assert live.look().notes == (
            "3 blocks were not counted, for want of memory", "the ledger has stopped counting",
        )  # fmt: skip

    def test_other_files_are_refused_and_closed(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x" * 5000)
        with pytest.raises(ValueError, match="is no black box of memtools"):
            LiveBox(path)


@native
def test_look_at_this_process_sees_its_owners(tmp_path: Path) -> None:
    with (
        BlackBox(tmp_path, name="own") as box,
        memory_scope("service"),
        memory_scope("import"),
        LiveBox(box.path) as live,
    ):
        before = live.look()
        rows = [bytes(MIB) for _ in range(8)]
        after = live.look()
        box.observe(Reading(50 * MIB, 100 * MIB, 1.0), Level.CRITICAL)
        live.update_readings()
        (account,) = [each for each in after.held if live.path_of(each) == ("service", "import")]
        assert 8 * MIB <= after.held[account] - before.held.get(account, 0) < 9 * MIB
        assert after.open_owners[account] == 1
        assert (live.readings[-1].level, live.name, live.pid) == (2, "own", os.getpid())
        del rows
        box.close()
        assert live.state() == "ended"


@native
def test_nothing_torn_or_negative_is_ever_seen(tmp_path: Path) -> None:
    command = [sys.executable, str(WRITING), str(tmp_path), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            (path,) = tmp_path.glob("*.box")
            with LiveBox(path) as live:
                wrong, totals = _look_many_times(live)
        finally:
            program.kill()
    assert wrong == []
    assert len(totals) >= TOTALS


def _look_many_times(live: LiveBox) -> tuple[list[object], set[int | None]]:
    wrong: list[object] = []
    totals: set[int | None] = set()
    end = time.monotonic() + TIMEOUT_S
    number = 0
    while (number < LOOKS or len(totals) < TOTALS) and time.monotonic() < end:
        number += 1
        found = live.look()
        totals.add(found.counted_bytes)
        held = {live.path_of(account)[-1]: size for account, size in found.held.items() if size > BASE // 2}
        workers = {name: size for name, size in held.items() if name.startswith("worker-")}
        if len(workers) != 6 or min(found.held.values()) < 0:
            wrong.append((number, found, workers))
        wrong += [(number, *pair) for pair in workers.items() if not BASE <= pair[1] <= BASE + SWING + SLACK]
        if number % 50 == 0:
            live.update_readings()
            used = [each.resident_bytes for each in live.readings]
            if used != list(range(used[0], used[0] + len(used))):
                wrong.append((number, used))
    return wrong, totals
