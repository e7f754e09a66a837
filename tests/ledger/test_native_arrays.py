"""numpy's arrays under `track_tasks(numpy=True)`, counted by task and thread."""

import asyncio
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from memtools.decorators import memory_budget
from memtools.errors import ConfigError, MissingExtraError
from memtools.ledger import active_owner, bind_to_current, native_reason, track_tasks
from memtools.ledger._instrument import TaskTracking
from memtools.scopes import memory_scope

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
numpy = pytest.importorskip("numpy", reason="numpy is not installed here")

MB = 1_000_000


def near(expected: int) -> Any:
    return pytest.approx(expected, abs=50_000)  # frames, assertions and records of the test itself


@pytest.fixture
def counted() -> Iterator[TaskTracking]:
    with track_tasks(numpy=True) as installation:
        yield installation


def test_arrays_are_counted_when_made_resized_and_freed(counted: TaskTracking) -> None:
    with memory_scope("arrays", meter="native") as scope:
        made = numpy.empty(5 * MB, dtype="u1")
        zeroed = numpy.zeros(3 * MB, dtype="u1")
        assert scope.usage.retained_bytes == near(8 * MB)
        made.resize(10 * MB, refcheck=False)
        assert scope.usage.retained_bytes == near(13 * MB)
        del zeroed

    assert scope.usage.retained_bytes == near(10 * MB)
    assert scope.usage.peak_bytes == near(13 * MB)
    del made
    assert scope.owner.live_bytes == near(0)


def test_freed_array_is_credited_to_its_maker(counted: TaskTracking) -> None:
    with memory_scope("maker", meter="native") as maker:
        kept = [numpy.ones(MB)]
    with memory_scope("bystander", meter="native") as bystander:
        thread = threading.Thread(target=kept.clear)
        thread.start()
        thread.join()

    assert maker.usage.retained_bytes == near(8 * MB)
    assert maker.owner.live_bytes == near(0)
    assert abs(bystander.usage.retained_bytes) < MB


def test_arrays_from_before_and_after_are_not_counted() -> None:
    before = numpy.ones(MB)
    handlers = [numpy._core.multiarray.get_handler_name(before)]
    with track_tasks(numpy=True), memory_scope("during", meter="native") as during:
        del before
        kept = numpy.ones(MB)
        handlers.append(numpy._core.multiarray.get_handler_name(kept))
    after = numpy.ones(MB)
    handlers.append(numpy._core.multiarray.get_handler_name(after))

    assert handlers == ["default_allocator", "memtools", "default_allocator"]
    assert during.usage.retained_bytes == near(8 * MB)
    del kept
    assert during.owner.live_bytes == near(0)


@pytest.mark.skipif(
    numpy.lib.NumpyVersion(numpy.__version__) >= "2.5.0",
    reason="from 2.5 on numpy's own handler asks Python's allocators, which are counted anyway",
)
def test_arrays_without_numpy_tracking_show_as_growth_only() -> None:
    from memtools.readings import read_process

    resident = read_process().resident_bytes
    with memory_scope("uncounted", meter="native") as scope:
        kept = numpy.ones(10 * MB)  # too large for the heap: pages of its own

    unattributed = read_process().resident_bytes - resident - scope.owner.live_bytes
    assert scope.usage.retained_bytes < MB
    assert unattributed > 70 * MB
    assert scope.usage.resident_delta_bytes - scope.usage.retained_bytes > 70 * MB
    assert len(kept) == 10 * MB


async def test_each_task_is_charged_with_its_own_arrays() -> None:
    used: dict[str, int] = {}

    @memory_scope("task", meter="native")
    async def make(name: str, size: int) -> None:
        await asyncio.sleep(0)
        kept = numpy.ones(size, dtype="u1")
        await asyncio.sleep(0)
        owner = active_owner()
        assert owner is not None
        used[name] = owner.live_bytes
        del kept

    started = asyncio.Event()

    async def older() -> None:
        await started.wait()
        await make("older", 7 * MB)

    task = asyncio.create_task(older())  # its context is from before
    await asyncio.sleep(0)
    with track_tasks(numpy=True):
        started.set()
        await asyncio.gather(
            task, asyncio.create_task(make("large", 5 * MB)), asyncio.create_task(make("small", 2 * MB))
        )

    assert used == {"older": near(7 * MB), "large": near(5 * MB), "small": near(2 * MB)}


def test_threads_with_a_scope_are_charged_with_arrays(counted: TaskTracking) -> None:
    used: list[int] = []

    def work() -> None:
        with memory_scope("thread", meter="native") as scope:
            kept = numpy.ones(5 * MB, dtype="u1")
            used.append(scope.owner.live_bytes)
            del kept

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    async def main() -> int:
        with memory_scope("task", meter="native") as scope:
            kept = await asyncio.to_thread(bind_to_current(numpy.ones), MB)
        assert len(kept) == MB
        return scope.usage.retained_bytes

    retained = asyncio.run(memory_budget("1 GiB", meter="native")(main)())

    assert used == [near(5 * MB)]
    assert retained == pytest.approx(8 * MB, abs=100_000)


def test_arrays_are_refused_like_any_other_block(counted: TaskTracking) -> None:
    with memory_scope("bounded", meter="native", budget=20 * MB, on_exceed="deny") as scope:
        kept = numpy.ones(MB)
        for make in (numpy.empty, numpy.zeros):
            with pytest.raises(MemoryError):
                make(10 * MB)
        with pytest.raises(MemoryError):
            kept.resize(10 * MB, refcheck=False)
        assert kept.sum() == MB

    assert scope.owner.refusals[0] == 3
    assert scope.usage.peak_bytes <= 20 * MB


def test_memory_from_other_allocators_shows_as_growth_only() -> None:
    with memory_scope("mapped", meter="native") as scope, mmap.mmap(-1, 32 * MB) as mapped:
        mapped.write(b"x" * 32 * MB)
        usage = scope.usage

    assert usage.resident_delta_bytes - usage.retained_bytes > 25 * MB
    assert usage.retained_bytes < MB


def test_only_the_native_meter_can_count_arrays() -> None:
    with pytest.raises(ConfigError, match="the only meter that counts arrays; here the meter is 'tracemalloc'"):
        track_tasks(numpy=True, meter="tracemalloc")


def test_missing_numpy_raises_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)

    with pytest.raises(MissingExtraError, match=r"numpy is not installed: pip install 'memtools\[numpy\]'"):
        track_tasks(numpy=True)


def test_numpy_arithmetic_is_unchanged() -> None:
    program = (
        "import memtools, numpy, gc\n"
        "with memtools.track_tasks(numpy=True), memtools.memory_scope('sums', meter='native') as scope:\n"
        "    total = 0.0\n"
        "    for size in range(1, 3000):\n"
        "        a = numpy.arange(size, dtype='f8'); b = numpy.sort(a[::-1].copy()); total += float((a * b).sum())\n"
        "        c = numpy.concatenate([a, b]).reshape(2, -1); del a, b, c\n"
        "    text = numpy.array(['abc', 'd' * 100]); boxes = numpy.array([object(), None])\n"
        "    del text, boxes; gc.collect()\n"
        "expected = sum(sum(n * n for n in range(size)) for size in range(1, 3000))\n"
        "print(total == expected, scope.owner.live_bytes < 200_000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120,
        check=False, cwd=tempfile.gettempdir(), env=os.environ,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]
