"""The files themselves: where they may be, how they are called, who may read them, and what is done when one fails."""

import errno
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path

import pytest

from memtools import memory_scope
from memtools.black_box import BlackBox, _folder, read_black_box
from memtools.black_box import _black_box as module
from memtools.black_box._file import BoxFile
from memtools.black_box._layout import MAX_DESCRIPTION, SECTIONS, SIZE
from memtools.errors import ConfigError
from memtools.events import BlackBoxFound, Event, subscribe
from memtools.ledger import native_reason
from memtools.readings import Level, Reading
from memtools.readings._traces import file_system_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no black boxes on Windows")
needs_native = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

MIB = 2**20
GROWING: list[str] = []
READING = Reading(100 * MIB, 1000 * MIB, 0.0)


class TestFolders:
    @pytest.mark.parametrize("value", ["", "/no/such/folder", __file__, 3, False, b"\0"])
    def test_folder_that_will_not_do_is_refused(self, value: object) -> None:
        with pytest.raises(ConfigError, match="a folder that exists and can be written"):
            BlackBox(value)  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "fuse", "9p"])
    def test_folder_on_a_network_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        monkeypatch.setattr(_folder, "file_system_of", lambda _: kind)
        with pytest.raises(ConfigError, match=f"on {kind} a store may wait for another machine"):
            BlackBox(tmp_path)

    def test_folder_in_a_containers_layer_is_warned_of(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(_folder, "file_system_of", lambda _: "overlay")
        with BlackBox(tmp_path):
            assert "is in the container's own layer" in caplog.text

    @pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no tmpfs")
    def test_default_folder_is_in_memory(self) -> None:
        assert BlackBox().folder == "/dev/shm"
        assert file_system_of("/dev/shm") == "tmpfs"

    def test_program_gives_the_name_unless_one_is_given(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path, name="my service/1") as box:
            name, pid, began, suffix = os.path.basename(box.path).split(".")
            assert (name, int(pid), suffix) == ("my_service_1", os.getpid(), "box")
            assert abs(int(began) / 1000 - time.time()) < 60
        with pytest.raises(ConfigError, match="the name of the program"):
            BlackBox(tmp_path, name=3)  # type: ignore[arg-type]


class TestFile:
    def test_only_this_user_may_read_it(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path) as box:
            status = os.stat(box.path)
            assert stat.S_IMODE(status.st_mode) == 0o600
            assert status.st_size == SIZE
            assert status.st_blocks * 512 >= SIZE  # no holes: the first store into one would be a fault on a full disk

    def test_regular_end_is_written(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path) as box:
            path = box.path
            assert read_black_box(path).verdict == "alive"
            box.open()  # again
            assert box.path == path
        assert read_black_box(path).verdict == "ended"
        assert (box.path, repr(box)) == ("", "<BlackBox closed>")
        box.close()
        box.observe(READING)  # nothing happens
        box.write_last_words(READING, Level.WARNING)

    def test_another_file_of_that_name_is_not_touched(self, tmp_path: Path) -> None:
        target = tmp_path / "precious"
        target.write_text("precious")
        path = tmp_path / "x.1.1.box"
        (tmp_path / ".x.1.1.box.part").symlink_to(target)
        with pytest.raises(FileExistsError):
            BoxFile.create(str(path), {})
        assert target.read_text() == "precious"

    def test_full_disk_is_an_error_and_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(OSError, match="No space left"):
            BlackBox(tmp_path).open()
        assert os.listdir(tmp_path) == []

    def test_long_description_is_left_out_at_its_end(self, tmp_path: Path) -> None:
        path = str(tmp_path / "x.1.1.box")
        file = BoxFile.create(path, {"name": "x", "long": "y" * MAX_DESCRIPTION})
        file.publish(path)
        assert read_black_box(path).facts == (("name", "x"),)
        file.close()

    def test_cut_file_is_not_made_longer(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with BlackBox(tmp_path) as box:
            os.truncate(box.path, 100)
            box.observe(READING)
            box.observe(READING)
            assert os.path.getsize(box.path) == 100
        assert caplog.text.count("is not written") == 1

    def test_two_boxes_of_one_process_do_no_harm(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path, name="one") as one, BlackBox(tmp_path, name="two") as two:
            two.observe(READING)
            assert (one.counts_owners, two.counts_owners) == (not native_reason(), False)
            assert len(read_black_box(two.path).readings) == 1

    @needs_native
    def test_names_can_be_left_out(self, tmp_path: Path) -> None:
        with memory_scope("secret"), BlackBox(tmp_path, names=False) as box, memory_scope("another secret"):
            assert b"secret" not in Path(box.path).read_bytes()

    @needs_native
    def test_threads_are_told_while_they_live(self, tmp_path: Path) -> None:
        def work() -> None:
            with memory_scope("in the thread"):
                told.wait(60)

        told, looked = threading.Event(), threading.Thread(target=work)
        with BlackBox(tmp_path) as box, memory_scope("main"):
            rows = [str(number) for number in range(1000)]
            looked.start()
            while not any(name == "in the thread" for _, name in read_black_box(box.path).threads):
                assert looked.is_alive()
            assert (os.getpid(), "main") in read_black_box(box.path).threads
            told.set()
            looked.join()
            assert [name for _, name in read_black_box(box.path).threads if name == "in the thread"] == []
        del rows

    @needs_native
    def test_names_stay_out_of_last_words(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path, names=False) as box:
            box.write_last_words(READING, Level.WARNING, owners=(("POST /secret", 3 * MIB),))
            assert b"secret" not in Path(box.path).read_bytes()

    @needs_native
    def test_owners_opened_before_and_after_are_named(self, tmp_path: Path) -> None:
        with memory_scope("before"), BlackBox(tmp_path) as box, memory_scope("after"):
            rows = [bytes(1000) for _ in range(100)]
            box.observe(READING)
            found = read_black_box(box.path)
        paths = {holding.path: holding.held_bytes for holding in found.holdings}
        assert paths["before", "after"] >= 100_000
        assert found.readings[0].counted_bytes is not None
        del rows

    def test_last_words_have_stacks_owners_and_the_heap(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path) as box:
            box.write_last_words(READING, Level.WARNING, owners=(("POST /import", 3 * MIB),))
            first = read_black_box(box.path).last_words
            GROWING.extend(map(str, range(100_000)))
            box.write_last_words(READING, Level.CRITICAL)
            second = read_black_box(box.path).last_words
            box.observe(READING)  # normal again: the next rise begins anew
            box.write_last_words(READING, Level.WARNING)
            third = read_black_box(box.path).last_words
        assert "warning: 100.0 MiB of 1000.0 MiB" in first
        assert "largest owners: POST /import 3.0 MiB" in first
        assert "test_last_words_have_stacks" in first
        assert "longest containers:" in first
        assert "test_black_box_files.GROWING +100,000 to 100,000" in second
        assert "test_last_words_have" in second
        assert "test_black_box_files.GROWING of 100,000" in third
        GROWING.clear()

    def test_heap_is_not_counted_without_room_for_it(self, tmp_path: Path) -> None:
        with BlackBox(tmp_path) as box:
            box.write_last_words(Reading(999 * MIB, 1000 * MIB, 0.0), Level.CRITICAL)
            assert "containers: not counted, too little memory is left" in read_black_box(box.path).last_words

    def test_failing_reading_reaches_no_caller(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: object) -> None:
            raise MemoryError

        with BlackBox(tmp_path) as box:
            monkeypatch.setattr(module.LastWords, "heap", fail)
            box.write_last_words(READING, Level.CRITICAL)
            assert "critical: 100.0 MiB" in read_black_box(box.path).last_words  # what was written first
        assert "is not written" in caplog.text


class TestDeadBoxes:
    def killed(self, folder: Path, name: str = "service", ms: int = 1) -> Path:
        path = folder / f"{name}.99.{ms}.box"
        file = BoxFile.create(str(path), {"name": name})
        os.pwrite(file.fd, (99).to_bytes(4, "little"), 24)
        file.publish(str(path))
        file.close()
        return path

    def test_killed_one_is_logged_and_emitted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = self.killed(tmp_path)
        received: list[Event] = []
        with subscribe(received.append), BlackBox(tmp_path, name="service"):
            (event,) = (each for each in received if isinstance(each, BlackBoxFound))
            assert (event.path, event.verdict) == (str(path), "killed")
            assert event.summary.startswith("process 99 was killed")
            assert f"An earlier run has left no end: {event.summary}" in caplog.text

    def test_newest_is_told_and_others_are_not(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        paths = [self.killed(tmp_path, ms=ms) for ms in range(1, 6)]
        other = self.killed(tmp_path, name="other")
        with BlackBox(tmp_path, name="service"):
            pass
        assert caplog.text.count("An earlier run has left no end") == 1
        assert str(paths[-1]) in caplog.text
        assert [path.exists() for path in paths] == [False, False, True, True, True]
        assert other.exists()

    def test_files_that_are_no_boxes_are_left_alone(self, tmp_path: Path) -> None:
        names = ["service.box", "service.x.1.box", "notes.txt", ".hidden", "service.1.99999999999999999999.box"]
        for name in names:
            (tmp_path / name).write_text("mine")
        (tmp_path / "service.7.7.box").mkdir()
        (tmp_path / "service.8.8.box").symlink_to(tmp_path / "notes.txt")
        garbage = tmp_path / "service.9.9.box"
        garbage.write_text("mine")
        with BlackBox(tmp_path, name="service"):
            assert all((tmp_path / name).read_text() == "mine" for name in names)

    def test_killed_one_that_cannot_be_read_is_passed_over(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = self.killed(tmp_path)
        os.truncate(path, 100)
        with BlackBox(tmp_path, name="service") as box:
            assert read_black_box(box.path).verdict == "alive"
        assert caplog.text == ""

    def test_half_made_file_of_a_dead_process_is_removed(self, tmp_path: Path) -> None:
        old, new = tmp_path / ".service.1.1.box.part", tmp_path / ".service.1.2.box.part"
        for path in (old, new):
            path.write_bytes(b"")
        os.utime(old, (1, 1))
        with BlackBox(tmp_path, name="service"):
            assert (old.exists(), new.exists()) == (False, True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A tmpfs of 1 MiB, which is less than a box."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.once
class TestRealDisks:
    def test_full_disk_gives_no_box_and_no_remains(self, small_disk: Path) -> None:
        with pytest.raises(OSError, match="No space left"):
            BlackBox(small_disk).open()
        assert os.listdir(small_disk) == []

    def test_read_only_disk_is_refused(self, small_disk: Path) -> None:
        box = BlackBox(small_disk)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(OSError, match="Read-only"):
            box.open()
        with pytest.raises(ConfigError):
            BlackBox(small_disk)


def test_sections_do_not_overlap_and_leave_the_mailbox_alone() -> None:
    places = sorted((section.at, section.place(section.count)) for section in SECTIONS.values())
    assert all(end <= begin for (_, end), (begin, _) in pairwise(places))
    assert (SECTIONS["mailbox"].at, SECTIONS["mailbox"].size) == (2048, 2048)


def test_logger_is_the_packages_own() -> None:
    assert logging.getLogger("memtools.black_box").parent is not None
