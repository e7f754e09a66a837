"""Stress test of the native meter: threads, forks, tracemalloc and programs at once, at random.

`python tests/conformance/native_stress.py --minutes 10 --seed 7` prints a line now and then, and returns 0 if all
checks passed. At quiet moments, model and figures must agree to the byte, and no number and no memory of the meter may
be lost. The process ends with the hooks installed; with `--abrupt`, also with threads running.

A seed fixes what each thread does, but not how the threads interleave.
"""

import argparse
import faulthandler
import gc
import logging
import os
import re
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

from _stress_accounts import Gate, Model
from _stress_scopes import ACTS, KeptObjects, runaway

from memtools.ledger import _native, active_owner, choose_meter, forget_accounts, native_reason, track_tasks
from memtools.ledger._context import per_thread
from memtools.scopes import memory_scope

ROUND_SECONDS = 3.0
FORK_SECONDS = 60.0
STUCK_SECONDS = 180.0
PAGE_KB = "8196 kB"  # the size of one mapping of the block map
# Blocks of ended owners that live on: in free lists, and as what the interpreter makes once and keeps.
MAX_NUMBERS = 3_000
# `tracemalloc.stop` does not free the source locations that it has seen (24 bytes each): their owners still hold them.
NUMBERS_PER_TRACING = 150
MEMORY_SLACK = 32 * 2**20


@dataclass
class Snapshot:
    """What the meter holds for itself at a quiet moment."""

    numbers: int  # in use, without those of the model
    block_map_bytes: int
    resident_bytes: int
    untracked_bytes: int


class Stress:
    """One run: threads that act at random until the round ends, and checks between rounds."""

    def __init__(self, seed: int, threads: int, *, forks: bool, traces: bool) -> None:
        self._seed = seed
        self._threads = threads
        self._forks = forks and hasattr(os, "fork")
        self._traces = traces
        self._gate = Gate()
        self._forks_now = self._traces_now = False
        self._ends_at = 0.0
        self._failures: list[BaseException] = []
        self.kept_objects = KeptObjects()
        self.model = Model(_native, self._gate)
        self.counts: dict[str, int] = {}

    def round(self, number: int) -> Snapshot:
        """Run the threads for a while, then check."""
        # Not all at once: in a child that is forked while a thread frees a block, tracemalloc's lock stays locked.
        self.model.has_limits = number % 3 != 0
        self._forks_now = self._forks and number % 3 != 2
        self._traces_now = self._traces and number % 3 == 2
        self._start_threads(number, is_daemon=False)
        self._run_thread(Random(f"{self._seed} {number} main"))
        for thread in self._running:
            thread.join()
        if self._failures:
            raise self._failures[0]
        self.model.lift_limits()
        time.sleep(0.1)  # for enforcer threads that are about to interrupt a thread
        return self._snapshot()

    def leave_threads_running(self) -> None:
        """Start threads that run when the process ends, and leave scopes open."""
        self._start_threads(-1, is_daemon=True)
        for depth in range(3):
            memory_scope(f"left open {depth}", meter="native").__enter__()
        time.sleep(0.3)

    def _start_threads(self, number: int, *, is_daemon: bool) -> None:
        self._ends_at = time.monotonic() + ROUND_SECONDS
        self._running = [
            threading.Thread(
                target=self._run_thread, args=(Random(f"{self._seed} {number} {index}"),), daemon=is_daemon
            )
            for index in range(self._threads)
        ]
        for thread in self._running:
            thread.start()

    def _run_thread(self, rng: Random) -> None:
        model = self.model
        small: list[Callable[[Random], None]] = [model.make] * 6 + [model.resize] * 4 + [model.free] * 5
        small += [model.open, model.close, model.drop]
        try:
            while time.monotonic() < self._ends_at and not self._failures:
                for _ in range(50):
                    rng.choice(small)(rng)
                self._run_program(rng)
        except BaseException as error:
            self._failures.append(error)

    def _run_program(self, rng: Random) -> None:
        act = rng.choice((*ACTS, runaway) if self.model.has_limits else ACTS)
        act(rng, self.kept_objects)
        self._count(act.__name__)
        assert active_owner() is None
        assert per_thread.slot.owner is None, f"{per_thread.slot.owner} is still current after {act.__name__}"
        chance = rng.random()
        if self._forks_now and chance < 0.02:
            self._fork(rng)
            self._count("fork")
        elif self._traces_now and chance < 0.05:
            self._gate.alone(tracemalloc.stop if tracemalloc.is_tracing() else tracemalloc.start)
            self._count("tracemalloc")
        elif chance < 0.06:
            forget_accounts()

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _fork(self, rng: Random) -> None:
        child = os.fork()
        if child:
            _wait_for(child)
            return
        code = 1
        try:
            _in_a_child(self.kept_objects)
            code = 0
        except BaseException as error:
            sys.stderr.write(f"in a child: {type(error).__name__}: {error}\n")
        finally:
            os._exit(code)

    def _snapshot(self) -> Snapshot:
        self._gate.alone(tracemalloc.stop)
        self.kept_objects.check()
        gc.collect()
        self.model.check()
        assert _native.lost_blocks() == 0
        assert not _native.reason()
        numbers = _native.counters_in_use() - len(self.model.modelled) - len(self.model.dropped)
        return Snapshot(numbers, *_memory(), _native.untracked_bytes())

    def finish(self) -> None:
        """Drop everything, and check that nothing is left."""
        self.model.clear()
        self.model.modelled.clear()
        self.model.dropped.clear()
        gc.collect()
        left = _native.counters_in_use()
        allowed = MAX_NUMBERS + NUMBERS_PER_TRACING * self.counts.get("tracemalloc", 0)
        assert left <= allowed, f"{left} numbers are in use, and no object has them"


def _in_a_child(kept_objects: KeptObjects) -> None:
    # Without the locks of the stress test: the threads that held them are gone.
    with memory_scope("child", meter="native") as opened:
        kept = [bytearray(10_000) for _ in range(100)]
        kept_objects.kept.clear()
        gc.collect()
    assert opened.usage.retained_bytes >= 1_000_000, opened.usage
    assert opened.usage.exact, opened.usage.note
    kept.clear()
    assert opened.owner.live_bytes is not None
    assert 0 <= opened.owner.live_bytes < 50_000, opened.owner.live_bytes


def _wait_for(child: int) -> None:
    ends_at = time.monotonic() + FORK_SECONDS
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert status == 0, f"a forked child ended with {os.waitstatus_to_exitcode(status)}"
            return
        if time.monotonic() > ends_at:
            os.kill(child, 6)
            os.waitpid(child, 0)
            raise AssertionError(f"a forked child hung for {FORK_SECONDS:.0f} s")
        time.sleep(0.002)


def _memory() -> tuple[int, int]:
    """Return resident bytes of the block map's pages, and of the process."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return 0, 0
    text = smaps.read_text()
    pages = re.findall(rf"^Size: +{PAGE_KB}\n(?:.*\n)*?Rss: +(\d+) kB", text, re.MULTILINE)
    everything = re.findall(r"^Rss: +(\d+) kB", text, re.MULTILINE)
    return sum(map(int, pages)) * 1024, sum(map(int, everything)) * 1024


def _check_growth(snapshots: list[Snapshot], toggles: int) -> None:
    # The first rounds touch new address space.
    if len(snapshots) < 8:
        return
    early = snapshots[2 : len(snapshots) // 2]
    late = snapshots[len(snapshots) // 2 :]
    for name in ("numbers", "block_map_bytes"):
        before = max(getattr(snapshot, name) for snapshot in early)
        after = max(getattr(snapshot, name) for snapshot in late)
        allowed = before * 1.5 + (MEMORY_SLACK if name == "block_map_bytes" else 200 + NUMBERS_PER_TRACING * toggles)
        assert after <= allowed, f"{name} grow: {before:,} in the first half, {after:,} in the second"


def run(options: argparse.Namespace) -> None:
    """Run rounds until the time is over."""
    stress = Stress(options.seed, options.threads, forks=not options.no_fork, traces=not options.no_tracemalloc)
    began = reported = time.monotonic()
    snapshots: list[Snapshot] = []
    while time.monotonic() - began < options.minutes * 60 or not snapshots:
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
        snapshots.append(stress.round(len(snapshots)))
        faulthandler.cancel_dump_traceback_later()
        if len(snapshots) == 1 or time.monotonic() - reported > 30:
            reported = time.monotonic()
            acts = f"{stress.model.acts:,} acts  {stress.model.refused:,} refused"
            print(f"{reported - began:5.0f} s  {acts}  {stress.counts}  {snapshots[-1]}", flush=True)
    if options.abrupt:
        stress.leave_threads_running()
        return
    stress.finish()
    _check_growth(snapshots, stress.counts.get("tracemalloc", 0))
    print(f"all checks passed: {len(snapshots)} rounds, {stress.model.acts:,} acts, {stress.counts}, {snapshots[-1]}")


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--no-fork", action="store_true")
    parser.add_argument("--no-tracemalloc", action="store_true")
    parser.add_argument("--abrupt", action="store_true", help="end with threads at work and scopes open")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # that is the point
    logging.disable()  # tasks fail on purpose
    reason = native_reason()
    if reason:
        print(f"no native ledger here: {reason}")
        return 2
    if find_spec("numpy"):
        track_tasks(numpy=True)
    choose_meter("native").acquire()
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
