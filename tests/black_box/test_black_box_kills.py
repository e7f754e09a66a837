"""What a file says of a process that was killed at any moment, against the process's own blocks."""

import array
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from memtools.black_box._reader import BoxParser
from memtools.ledger import native_reason

NATIVE = Path(__file__).parents[2] / "memtools" / "ledger" / "native"
PROGRAMS = Path(__file__).with_name("programs")
READY_S = 60.0

if native_reason():
    pytest.skip(f"no native ledger: {native_reason()}", allow_module_level=True)
if shutil.which("cc") is None or not (NATIVE / "black_box.h").exists():
    pytest.skip("no compiler, or no C sources", allow_module_level=True)

LONG = pytest.mark.skipif(os.environ.get("BLACK_BOX_LONG") != "1", reason="BLACK_BOX_LONG=1 runs it")
KILLS = 200 if os.environ.get("BLACK_BOX_LONG") == "1" else 20
STEPS = 600_000 if os.environ.get("BLACK_BOX_LONG") == "1" else 60_000
LARGEST_BLOCK = 100_064  # of the program: a bytearray below 100,000 bytes, or what a container grows to
SMALL_BLOCK = 600  # of the program that only takes turns


def compiled(source: str, folder: Path) -> Path:
    made = folder / source.removesuffix(".c")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
    subprocess.run(["cc", *flags, "-o", str(made), str(PROGRAMS / source)], check=True, timeout=120)
    return made


@contextlib.contextmanager
def hungry(folder: Path, kind: str) -> Generator[tuple[int, str, str]]:
    """Start the program; yield its id, the path of its box, and the address of its block map. Killed at the end."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "hungry.py"), str(folder), kind],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "MEMTOOLS_METER": "native"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        path, address, counts = process.stdout.readline().split()
        assert counts == "True"
        yield process.pid, path, address
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + READY_S
    for thread in os.listdir(f"/proc/{pid}/task"):
        while Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
            assert time.monotonic() < deadline
            time.sleep(0.001)


def block_sums(program: Path, pid: int, address: str) -> dict[int, int]:
    """Return the bytes of the live blocks of a stopped process by counter."""
    done = subprocess.run([program, str(pid), address], capture_output=True, check=True, timeout=60)
    sums = array.array("q", done.stdout)
    return {number: held for number, held in enumerate(sums) if held}


def differences(path: str, sums: dict[int, int]) -> tuple[dict[int, int], list[str]]:
    parser = BoxParser(path, Path(path).read_bytes())
    hot = parser.read_hot()
    assert hot is not None
    read = {number: counter.own for number, counter in parser.read_counters(hot).items()}
    found = {number: read.get(number, 0) - sums.get(number, 0) for number in read.keys() | sums.keys()}
    return {number: change for number, change in found.items() if change}, parser.notes


@pytest.mark.once
@pytest.mark.parametrize("kind", ["mixed", pytest.param("turns", marks=LONG), pytest.param("sweep", marks=LONG)])
def test_killed_process_left_every_owner_to_the_block(tmp_path: Path, kind: str) -> None:
    program = compiled("sum_blocks.c", tmp_path)
    chance = random.Random(kind)
    equal, unsure = 0, 0
    kills = KILLS if kind == "mixed" else max(KILLS // 5, 1)
    for _ in range(kills):
        with hungry(tmp_path, kind) as (pid, path, address):
            time.sleep(chance.uniform(0.005, 0.15))
            stop(pid)
            sums = block_sums(program, pid, address)
        differ, notes = differences(path, sums)
        if notes:  # it says that it may be wrong
            unsure += 1
            continue
        # At most the block in flight: charged to one owner, or credited to one and charged to another.
        assert len(differ) <= 2
        assert all(abs(change) <= LARGEST_BLOCK for change in differ.values())
        equal += not differ
        Path(path).unlink()
    print(f"{kind}: {kills} kills, {equal} equal to the byte for every owner, {unsure} that said they were unsure")
    assert equal >= kills // 2


@pytest.mark.once
def test_box_is_right_after_every_single_instruction(tmp_path: Path) -> None:
    program = compiled("step_through.c", tmp_path)
    with hungry(tmp_path, "counters") as (pid, path, _):
        done = subprocess.run(
            [program, str(pid), path, str(STEPS), str(SMALL_BLOCK)],
            capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip
    if done.returncode == 3:
        pytest.skip(f"this process may not trace another one: {done.stderr.strip()}")
    print("steps, in a flush, unsure, changes, largest, jumps:", done.stdout)
    taken, flushes, unsure, changes, largest, jumps = map(int, done.stdout.split())
    assert taken == STEPS
    assert flushes > 0
    assert changes > 10
    assert unsure == 0
    assert (jumps, largest <= SMALL_BLOCK) == (0, True)
