"""The native meter: figures after an owner's end, by thread, beside other tools, across a fork."""

import gc
import os
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memtools.ledger import Meter, Usage, choose_meter, native_reason
from memtools.ledger._ledger import close_owner, current_usage, open_owner
from memtools.scopes import memory_scope

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

MB = 1_000_000
PROGRAMS = Path(__file__).with_name("programs")
SLACK = 20_000  # frames, records and locks of the test itself


@pytest.fixture
def meter() -> Iterator[Meter]:
    """The native meter, counting, as in a program that has a scope open all the time."""
    meter = choose_meter("native")
    meter.acquire()
    yield meter
    meter.release()


def near(expected: int) -> Any:
    return pytest.approx(expected, abs=SLACK)


def python(program: str | Path, *options: str, **environment: str) -> str:
    command = [sys.executable, *options, *(["-c", program] if isinstance(program, str) else [str(program)])]
    # In another folder, so that `-c` imports the installed package and not the checkout.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False,
        cwd=tempfile.gettempdir(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_native_is_the_default_and_reports_exact_figures() -> None:
    with memory_scope("block") as block:
        kept = [bytes(1000) for _ in range(1000)]

    usage: Usage = block.usage
    assert (usage.meter, usage.exact, usage.note) == ("native", True, "")
    assert usage.retained_bytes == near(1000 * 1033 + sys.getsizeof(kept))
    assert usage.allocated_bytes is not None
    assert usage.freed_bytes == usage.allocated_bytes - usage.retained_bytes


def test_live_bytes_fall_after_the_end_while_usage_stays(meter: Meter) -> None:
    with memory_scope("leaves something", meter="native") as block:
        kept = [bytearray(MB) for _ in range(3)]

    assert block.owner.live_bytes == near(3 * MB)
    del kept[1:]
    assert block.owner.live_bytes == near(MB)
    kept.clear()
    assert block.owner.live_bytes == near(0)
    assert block.usage.retained_bytes == near(3 * MB)


def test_live_bytes_fall_after_counting_has_ended() -> None:
    with memory_scope("leaves something", meter="native") as block:
        kept = bytearray(MB)

    made_later = bytearray(MB)
    del kept

    assert block.owner.live_bytes == near(0)
    assert len(made_later) == MB


def test_owner_that_frees_blocks_of_another_is_not_credited(meter: Meter) -> None:
    with memory_scope("maker", meter="native") as maker:
        kept = bytearray(5 * MB)

    with memory_scope("bystander", meter="native") as bystander:
        own = bytearray(MB)
        del kept

    assert bystander.usage.retained_bytes == near(MB)
    assert maker.owner.live_bytes == near(0)
    assert len(own) == MB


def test_collection_in_another_step_credits_the_maker(meter: Meter) -> None:
    with memory_scope("maker", meter="native") as maker:
        cycle: list[object] = [bytearray(5 * MB)]
        cycle.append(cycle)
        del cycle

    with memory_scope("bystander", meter="native") as bystander:
        gc.collect()

    assert bystander.usage.peak_bytes < MB
    assert bystander.usage.retained_bytes == near(0)
    assert maker.owner.live_bytes == near(0)


def test_child_bytes_freed_by_its_parent_do_not_raise_the_peak(meter: Meter) -> None:
    with memory_scope("parent", meter="native") as parent:
        with memory_scope("child", meter="native"):
            kept = bytearray(5 * MB)
        del kept
        again = bytearray(5 * MB)

    assert parent.usage.peak_bytes == near(5 * MB)
    assert parent.usage.retained_bytes == near(5 * MB)
    assert len(again) == 5 * MB


def test_sibling_that_frees_first_leaves_the_parents_peak(meter: Meter) -> None:
    with memory_scope("parent", meter="native") as parent:
        with memory_scope("first", meter="native"):
            kept = bytearray(5 * MB)
        with memory_scope("second", meter="native") as second:
            del kept
            again = bytearray(5 * MB)

    assert parent.usage.peak_bytes == near(5 * MB)
    assert second.usage.peak_bytes == near(5 * MB)
    assert len(again) == 5 * MB
    assert second.owner.live_bytes == near(5 * MB)


def test_child_that_outlives_its_parent_keeps_its_bytes(meter: Meter) -> None:
    outer = open_owner("outer", "scope", meter=meter)
    inner = open_owner("inner", "scope", meter=meter)
    kept = [bytearray(MB)]

    close_owner(outer)
    kept.append(bytearray(MB))
    close_owner(inner)

    assert current_usage(outer).retained_bytes == near(MB)
    assert outer.live_bytes == near(0)
    assert inner.live_bytes == near(2 * MB)


def test_concurrent_threads_are_charged_exactly(meter: Meter) -> None:
    usages: dict[int, Usage] = {}
    kept: list[list[bytes]] = [[], [], []]

    def work(number: int) -> None:
        with memory_scope(f"thread {number}", meter="native") as opened:
            for _ in range(2000):
                kept[number].append(bytes(1000 * (number + 1)))
        usages[number] = opened.usage

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for number in range(3):
        assert usages[number].exact
        assert usages[number].retained_bytes == near(2000 * (1000 * (number + 1) + 33))


def test_peak_of_a_parent_is_that_of_its_threads_together(meter: Meter) -> None:
    both_hold = threading.Barrier(2, timeout=30)
    from memtools.ledger import bind_to_current

    def work() -> None:
        kept = bytearray(5 * MB)
        both_hold.wait()
        del kept

    with memory_scope("parent", meter="native") as parent:
        threads = [threading.Thread(target=bind_to_current(work)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert parent.usage.peak_bytes == near(10 * MB)
    assert parent.usage.retained_bytes == near(0)


def test_bytes_without_a_current_owner_are_unattributed(meter: Meter) -> None:
    before = meter.unattributed_bytes
    kept = bytearray(2 * MB)

    assert meter.unattributed_bytes - before == near(2 * MB)
    assert len(kept) == 2 * MB


def test_counter_numbers_are_reused_once_nothing_lives(meter: Meter) -> None:
    from memtools.ledger import _native

    gc.collect()
    before = _native.counters_in_use()
    kept = []
    for _ in range(1000):
        with memory_scope("short", meter="native") as opened:
            kept.append(bytearray(100))
    del opened
    gc.collect()
    held = _native.counters_in_use()
    kept.clear()

    # Some from before may be released meanwhile: their last block may lie in a free list of the interpreter.
    assert 990 <= held - before <= 1010
    assert _native.counters_in_use() - before <= 10


def test_owner_beyond_the_last_counter_shares_its_parents(meter: Meter) -> None:
    from memtools.ledger import _native

    with memory_scope("parent", meter="native") as parent:
        crowd = [_native.Counter() for _ in range(40_000)]
        assert crowd[-1].is_shared
        with memory_scope("one too many", meter="native") as late:
            kept = bytearray(MB)
        del crowd

    assert not late.usage.exact
    assert "too many owners" in late.usage.note
    assert late.usage.retained_bytes == near(MB)
    assert parent.usage.retained_bytes >= MB
    assert len(kept) == MB
    with memory_scope("later", meter="native") as later:
        pass
    assert later.usage.exact


def test_foreign_tracemalloc_session_changes_nothing(meter: Meter) -> None:
    with memory_scope("during", meter="native") as during:
        tracemalloc.start()
        kept = [bytearray(MB)]
        tracemalloc.stop()
        kept.append(bytearray(MB))

    assert during.usage.exact
    assert during.usage.retained_bytes == near(2 * MB)
    kept.clear()
    assert during.owner.live_bytes == near(0)


def test_removed_hooks_make_only_open_owners_inexact() -> None:
    lines = python(PROGRAMS / "remove_hooks.py").splitlines()

    assert lines[0] == "False another tool removed the hooks from the allocator"
    assert lines[1:] == ["True True", "True"]


def test_on_top_of_tracemalloc_both_see_the_same_bytes() -> None:
    native, traced = python(PROGRAMS / "count_on_top_of_tracemalloc.py", "-X", "tracemalloc=1").split()

    assert native == traced


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_both_sides_of_a_fork_go_on_counting() -> None:
    assert python(PROGRAMS / "fork_in_scope.py").strip() == "True"


def test_native_meter_can_be_disabled_by_environment() -> None:
    program = (
        "from memtools.ledger import choose_meter, native_reason\n"
        "from memtools.errors import ConfigError\n"
        "print(choose_meter().name, native_reason())\n"
        "try:\n    choose_meter('native')\nexcept ConfigError as error:\n    print(error)\n"
    )

    lines = python(program, MEMTOOLS_NATIVE="0").splitlines()

    assert lines[0] == "rss MEMTOOLS_NATIVE=0"
    assert lines[1] == (
        "meter='native' is not accepted: use 'tracemalloc' or 'rss'; there is no 'native' here: MEMTOOLS_NATIVE=0"
    )


def test_missing_extension_is_the_reason() -> None:
    program = (
        "import sys\nsys.modules['memtools.ledger._native'] = None\n"
        "from memtools.ledger import choose_meter, native_reason\nprint(choose_meter().name, native_reason())"
    )

    assert python(program).startswith("rss it was not built, or cannot be loaded (")


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc", "debug", "malloc_debug", "pymalloc_debug"])
def test_figures_are_exact_on_every_allocator(allocator: str) -> None:
    program = (
        "from memtools.ledger import _native, choose_meter\n"
        "choose_meter('native').acquire()\n"
        "def work(counter):\n"
        "    _native.switch(counter)\n    kept = bytes(100_000)\n    _native.switch(None)\n"
        "    print(counter.read()[0])\n    del kept\n    print(counter.read()[0])\n"
        "work(_native.Counter())"
    )

    assert python(program, PYTHONMALLOC=allocator).split() == ["100033", "0"]
