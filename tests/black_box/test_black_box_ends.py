"""What is left of programs that end by themselves, are killed, fork, or run out of memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import pytest

from memtools.black_box import PostMortem, read_black_box
from memtools.ledger import native_reason
from memtools.readings._traces import own_memory_cgroup

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="the programs and the evidence are Linux's"),
]
needs_native = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

MIB = 2**20
LIMIT_MIB = 200
LONG = pytest.mark.skipif(os.environ.get("BLACK_BOX_LONG") != "1", reason="BLACK_BOX_LONG=1 runs it")

End = Callable[..., "subprocess.CompletedProcess[str]"]


def boxes(folder: Path, name: str = "program") -> list[PostMortem]:
    return [read_black_box(path) for path in sorted(folder.glob(f"{name}.*.box"))]


def box_of(folder: Path) -> PostMortem:
    (found,) = boxes(folder)
    return found


def largest(found: PostMortem) -> str:
    return found.holdings[0].path[-1]


class TestEnds:
    @needs_native
    def test_killed_program_left_who_held_what(self, end: End, tmp_path: Path) -> None:
        done = end("killed")

        found = box_of(tmp_path)
        assert done.returncode == -signal.SIGKILL
        assert found.verdict == "killed"
        assert found.holdings[0].path == ("service", "POST /import")
        assert 20 * MIB <= found.holdings[0].held_bytes < 20.1 * MIB
        assert found.single_owner is not None
        assert found.single_owner.held_bytes == found.holdings[0].held_bytes
        assert found.charged == "POST /import"
        assert [name for _, name in found.threads] == ["POST /import"]
        assert found.readings[-1].resident_bytes == 100 * MIB
        assert found.notes == ()

    def test_program_that_ends_regularly_says_so(self, end: End, tmp_path: Path) -> None:
        assert end("ended").returncode == 0

        assert box_of(tmp_path).verdict == "ended"

    def test_program_that_ends_by_an_exception_says_so(self, end: End, tmp_path: Path) -> None:
        assert end("raised").returncode == 1

        assert box_of(tmp_path).verdict == "ended"

    @needs_native
    def test_one_large_list_is_named_before_it_is_touched(self, end: End, tmp_path: Path) -> None:
        end("large_list", str(10**7), "1000")

        found = box_of(tmp_path)
        assert found.holdings[0].path == ("service", "one large list")
        assert found.holdings[0].held_bytes >= 8 * 10**7
        assert found.verdict == "killed"

    @needs_native
    def test_allocation_beyond_the_limit_makes_a_kill_likely(self, end: End, tmp_path: Path) -> None:
        end("large_list", str(10**7), "180")  # 176 MiB of 180, where the last reading has 100

        assert box_of(tmp_path).verdict == "oom-likely"

    @needs_native
    def test_ledger_that_had_stopped_is_noted(self, end: End, tmp_path: Path) -> None:
        end("subinterpreter")

        assert "the ledger had stopped counting: its figures are older than the death" in box_of(tmp_path).notes

    def test_without_the_native_ledger_readings_are_left(self, end: End, tmp_path: Path) -> None:
        end("killed", MEMTOOLS_NATIVE="0")

        found = box_of(tmp_path)
        assert found.counted_bytes is None
        assert found.holdings == ()
        assert found.readings[-1].resident_bytes == 100 * MIB
        assert "no ledger has counted: there are readings and last words only" in found.notes

    def test_other_meter_leaves_readings_only(self, end: End, tmp_path: Path) -> None:
        end("killed", MEMTOOLS_METER="rss")

        assert box_of(tmp_path).counted_bytes is None

    def test_program_that_executes_itself_was_not_killed(self, end: End, tmp_path: Path) -> None:
        done = end("exec_itself")

        assert done.returncode == 0
        assert "An earlier run has left no end" not in done.stderr

    def test_next_start_tells_of_the_killed_one_once(self, end: End, tmp_path: Path) -> None:
        end("killed")

        first, second = end("ended"), end("ended")

        assert first.stderr.count("An earlier run has left no end: process") == 1
        assert "python -m memtools postmortem" in first.stderr
        assert second.stderr == ""

    def test_three_dead_boxes_are_kept_killed_ones_first(self, end: End, tmp_path: Path) -> None:
        end("killed")
        for _ in range(4):
            end("ended")

        verdicts = sorted(found.verdict for found in boxes(tmp_path))
        assert verdicts == ["ended", "ended", "ended", "killed"]  # the last one was alive when it counted


class TestProcesses:
    @needs_native
    def test_fork_leaves_the_file_to_the_parent(self, end: End, tmp_path: Path) -> None:
        done = end("fork")

        assert "child '' True" in done.stdout, done.stderr
        assert "parent True True" in done.stdout
        found = {each.verdict: each for each in boxes(tmp_path)}
        assert set(found) == {"ended", "killed"}
        (of_child,) = [each for each in found["killed"].holdings if each.path[-1] == "of the child"]
        assert of_child.held_bytes >= 8 * MIB

    def test_children_of_multiprocessing_end_regularly(self, end: End, tmp_path: Path) -> None:
        done = end("spawn")

        assert done.stdout.split() == ["spawn", "0", "fork", "0"], done.stderr
        assert [found.verdict for found in boxes(tmp_path, "*")] == ["ended"] * 3

    @pytest.mark.skipif(shutil.which("gunicorn") is None, reason="gunicorn is not installed")
    def test_killed_worker_of_gunicorn_is_told_by_the_next_one(self, tmp_path: Path) -> None:
        (tmp_path / "site_app.py").write_text(
            "import time, threading\nfrom memtools.monitor import MemoryMonitor\n"
            f"monitor = MemoryMonitor(black_box={str(tmp_path)!r}, max_interval=0.1)\nmonitor.start()\n"
            "def look():\n    while True:\n        monitor.level\n        time.sleep(0.05)\n"
            "def app(environ, start):\n    start('200 OK', [])\n    return [b'']\n"
        )
        (tmp_path / "conf.py").write_text(
            "import threading\ndef post_worker_init(worker):\n    import site_app\n    site_app.monitor.level\n"
        )
        process = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "--preload", "-w", "1", "-b", "127.0.0.1:0", "-c", "conf.py",
                "site_app:app",
            ],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}"},
        )  # fmt: skip
        try:
            worker = _wait_for(lambda: _other_pid(tmp_path, {process.pid}))
            os.kill(worker, signal.SIGKILL)
            second = _wait_for(lambda: _other_pid(tmp_path, {process.pid, worker}))
            found = {each.pid: each.verdict for each in boxes(tmp_path, "*")}
        finally:
            process.terminate()
            _, log = process.communicate(timeout=30)

        assert found == {process.pid: "alive", worker: "killed", second: "alive"}
        assert log.count(f"An earlier run has left no end: process {worker}") == 1
        verdicts = {each.pid: each.verdict for each in boxes(tmp_path, "*")}
        assert (verdicts[process.pid], verdicts[second]) == ("ended", "ended")


def _other_pid(folder: Path, known: set[int]) -> int | None:
    found = {int(path.name.split(".")[-3]) for path in folder.glob("*.box")} - known
    return next(iter(found), None)


def _wait_for(look: Callable[[], int | None]) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.02)
    raise AssertionError("it has not come")


@pytest.fixture
def cgroup() -> Generator[tuple[str, ...]]:
    """A memory cgroup of 200 MiB; yields the words that start a program in it."""
    own = own_memory_cgroup()
    if own is None or os.getuid() != 0:
        pytest.skip("no memory cgroup is visible, or this user may make none")
    folder = Path(own.directory, f"memtools-test-{os.getpid()}")
    limits = {1: "memory.limit_in_bytes", 2: "memory.max"}
    swap = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}
    try:
        folder.mkdir()
        (folder / limits[own.version]).write_text(str(LIMIT_MIB * MIB))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    with suppress(OSError):
        (folder / swap[own.version]).write_text("0" if own.version == 2 else str(LIMIT_MIB * MIB))
    yield "sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"
    deadline = time.monotonic() + 30
    while folder.exists() and time.monotonic() < deadline:
        try:
            folder.rmdir()
        except OSError:  # EBUSY: the last process has not gone yet
            time.sleep(0.05)


@needs_native
class TestOutOfMemory:
    """Real kills by the kernel, in a memory cgroup."""

    @pytest.mark.parametrize(
        ("kind", "owner"),
        [
            ("leak", "POST /import"),
            pytest.param("runaway", "POST /report", marks=LONG),
            pytest.param("large_list", "one large list", marks=LONG),
        ],
    )
    def test_owner_of_the_memory_is_named(
        self, end: End, tmp_path: Path, cgroup: tuple[str, ...], kind: str, owner: str
    ) -> None:
        words = (str(10**8), "1000") if kind == "large_list" else (str(LIMIT_MIB),)
        done = end(kind, *words, before=cgroup)

        found = box_of(tmp_path)
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
        assert largest(found) == owner
        # The cgroup of this process is another one, so only its own counter would make it certain.
        assert found.verdict in ("oom-killed", "oom-likely", "killed")
        if kind != "large_list":
            assert found.verdict in ("oom-killed", "oom-likely")

    def test_leak_of_native_memory_is_said_to_be_native(
        self, end: End, tmp_path: Path, cgroup: tuple[str, ...]
    ) -> None:
        end("native_leak", str(LIMIT_MIB), before=cgroup)

        found = box_of(tmp_path)
        assert found.verdict in ("oom-killed", "oom-likely")
        assert found.is_mostly_native
        assert "native" in found.advice()[0]

    @LONG
    def test_storm_of_forks_names_the_children(self, end: End, tmp_path: Path, cgroup: tuple[str, ...]) -> None:
        end("forks", str(LIMIT_MIB), before=cgroup)

        killed = [each for each in boxes(tmp_path) if each.verdict != "ended"]
        assert killed
        assert {largest(each) for each in killed if each.counted_bytes and each.counted_bytes > 5 * MIB} <= {"child"}


@needs_native
def test_killed_like_out_of_memory_without_a_cgroup(end: End, tmp_path: Path) -> None:
    end("native_leak", "200", "196")

    found = box_of(tmp_path)
    assert (found.verdict, found.is_mostly_native) == ("oom-likely", True)
