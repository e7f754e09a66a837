"""Do everything at once under the native ledger, at random, and see that its figures stay right.

`python tests/conformance/native_storm.py --minutes 10 --seed 7` prints a line now and then; 0 if all held. The process
ends as an interpreter does, with the hooks in place; with `--abrupt` in the middle of it, with threads at work.

Covers: threads, forks, tracemalloc coming and going, and at quiet moments what must be true: books and figures agree to
the byte, no number and no memory of the ledger's own is lost. Leaves to others: blocks (`_storm_books`), programs
(`_storm_scopes`).

A seed fixes what each thread sets out to do, not in which order they come.
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

from _storm_books import Bookkeeper, Gate
from _storm_scopes import ACTS, Hoard, runaway

from memtools.ledger import _native, active_owner, choose_meter, forget_accounts, native_reason, track_tasks
from memtools.ledger._context import per_thread
from memtools.scopes import memory_scope

ROUND_SECONDS = 3.0
FORK_SECONDS = 60.0
STUCK_SECONDS = 180.0
LEAF_KB = "8196 kB"  # how large a mapping of the shadow is
# Blocks of ended owners that live on: in free lists, and as what the interpreter makes once and keeps.
MOST_NUMBERS = 3_000
# `tracemalloc.stop` does not free the places in the source that it has seen (24 bytes each): owners hold them still.
NUMBERS_PER_TRACING = 150
MEMORY_SLACK = 32 * 2**20


@dataclass
class Standing:
    """What the ledger holds for itself at a quiet moment."""

    numbers: int  # taken, without those of the books
    shadow_bytes: int
    resident_bytes: int
    nobodys_bytes: int


class Storm:
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
        self.hoard = Hoard()
        self.books = Bookkeeper(_native, self._gate)
        self.counts: dict[str, int] = {}

    def round(self, number: int) -> Standing:
        """Let it loose for a while, then look."""
        # Not all at once: in a child that is forked while a thread frees something, tracemalloc's lock stays locked for
        # ever.
        self.books.has_ceilings = number % 3 != 0
        self._forks_now = self._forks and number % 3 != 2
        self._traces_now = self._traces and number % 3 == 2
        self._let_loose(number, is_daemon=False)
        self._act(Random(f"{self._seed} {number} main"))
        for thread in self._running:
            thread.join()
        if self._failures:
            raise self._failures[0]
        self.books.lift_ceilings()
        time.sleep(0.1)  # threads that are on their way to stop somebody
        return self._take_stock()

    def leave_in_the_middle(self) -> None:
        """Start threads that will be at work when the process ends, and leave scopes open."""
        self._let_loose(-1, is_daemon=True)
        for depth in range(3):
            memory_scope(f"left open {depth}", meter="native").__enter__()
        time.sleep(0.3)

    def _let_loose(self, number: int, *, is_daemon: bool) -> None:
        self._ends_at = time.monotonic() + ROUND_SECONDS
        self._running = [
            threading.Thread(target=self._act, args=(Random(f"{self._seed} {number} {who}"),), daemon=is_daemon)
            for who in range(self._threads)
        ]
        for thread in self._running:
            thread.start()

    def _act(self, rng: Random) -> None:
        books = self.books
        small: list[Callable[[Random], None]] = [books.make] * 6 + [books.resize] * 4 + [books.free] * 5
        small += [books.open, books.close, books.drop]
        try:
            while time.monotonic() < self._ends_at and not self._failures:
                for _ in range(50):
                    rng.choice(small)(rng)
                self._act_largely(rng)
        except BaseException as error:
            self._failures.append(error)

    def _act_largely(self, rng: Random) -> None:
        act = rng.choice((*ACTS, runaway) if self.books.has_ceilings else ACTS)
        act(rng, self.hoard)
        self._count(act.__name__)
        assert active_owner() is None
        assert per_thread.slot.owner is None, f"{per_thread.slot.owner} still has the turn after {act.__name__}"
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
            _in_a_child(self.hoard)
            code = 0
        except BaseException as error:
            sys.stderr.write(f"in a child: {type(error).__name__}: {error}\n")
        finally:
            os._exit(code)

    def _take_stock(self) -> Standing:
        self._gate.alone(tracemalloc.stop)
        self.hoard.check()
        gc.collect()
        self.books.check()
        assert _native.lost_blocks() == 0
        assert not _native.reason()
        numbers = _native.counters_in_use() - len(self.books.books) - len(self.books.gone)
        return Standing(numbers, *_memory(), _native.untracked_bytes())

    def finish(self) -> None:
        """Let go of everything, and see that nothing is left."""
        self.books.clear()
        self.books.books.clear()
        self.books.gone.clear()
        gc.collect()
        left = _native.counters_in_use()
        allowed = MOST_NUMBERS + NUMBERS_PER_TRACING * self.counts.get("tracemalloc", 0)
        assert left <= allowed, f"{left} numbers are taken, and nobody asks any more"


def _in_a_child(hoard: Hoard) -> None:
    # No locks of the storm's: who held them is no more.
    with memory_scope("child", meter="native") as opened:
        kept = [bytearray(10_000) for _ in range(100)]
        hoard.kept.clear()
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
    """Return resident bytes of the shadow's leaves, and of the process."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return 0, 0
    text = smaps.read_text()
    leaves = re.findall(rf"^Size: +{LEAF_KB}\n(?:.*\n)*?Rss: +(\d+) kB", text, re.MULTILINE)
    everything = re.findall(r"^Rss: +(\d+) kB", text, re.MULTILINE)
    return sum(map(int, leaves)) * 1024, sum(map(int, everything)) * 1024


def _judge(standings: list[Standing], toggles: int) -> None:
    # The first rounds touch new address space.
    if len(standings) < 8:
        return
    early = standings[2 : len(standings) // 2]
    late = standings[len(standings) // 2 :]
    for name in ("numbers", "shadow_bytes"):
        before = max(getattr(standing, name) for standing in early)
        after = max(getattr(standing, name) for standing in late)
        allowed = before * 1.5 + (MEMORY_SLACK if name == "shadow_bytes" else 200 + NUMBERS_PER_TRACING * toggles)
        assert after <= allowed, f"{name} grow: {before:,} in the first half, {after:,} in the second"


def run(options: argparse.Namespace) -> None:
    """Run rounds until the time is over."""
    storm = Storm(options.seed, options.threads, forks=not options.no_fork, traces=not options.no_tracemalloc)
    began = told = time.monotonic()
    standings: list[Standing] = []
    while time.monotonic() - began < options.minutes * 60 or not standings:
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
        standings.append(storm.round(len(standings)))
        faulthandler.cancel_dump_traceback_later()
        if len(standings) == 1 or time.monotonic() - told > 30:
            told = time.monotonic()
            acts = f"{storm.books.acts:,} acts  {storm.books.refused:,} refused"
            print(f"{told - began:5.0f} s  {acts}  {storm.counts}  {standings[-1]}", flush=True)
    if options.abrupt:
        storm.leave_in_the_middle()
        return
    storm.finish()
    _judge(standings, storm.counts.get("tracemalloc", 0))
    print(f"all held: {len(standings)} rounds, {storm.books.acts:,} acts, {storm.counts}, {standings[-1]}")


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
