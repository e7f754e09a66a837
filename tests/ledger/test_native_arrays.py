"""numpy's arrays under `track_tasks(numpy=True)`, counted by task and thread."""

import asyncio
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from memtools.decorators import memory_budget
from memtools.errors import BudgetExceeded, ConfigError, MissingExtraError
from memtools.ledger import active_owner, bind_to_current, native_reason, track_tasks
from memtools.ledger._instrument import TaskTracking
from memtools.ledger.meters import _native
from memtools.scopes import _budgets, memory_scope

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
numpy = pytest.importorskip("numpy", reason="numpy is not installed here")

MB = 1_000_000
_core = getattr(numpy, "_core", None) or numpy.core  # the name before numpy 2


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
    handlers = [_core.multiarray.get_handler_name(before)]
    with track_tasks(numpy=True), memory_scope("during", meter="native") as during:
        del before
        kept = numpy.ones(MB)
        handlers.append(_core.multiarray.get_handler_name(kept))
    after = numpy.ones(MB)
    handlers.append(_core.multiarray.get_handler_name(after))

    assert handlers == ["default_allocator", "memtools", "default_allocator"]
    assert during.usage.retained_bytes == near(8 * MB)
    del kept
    assert during.owner.live_bytes == near(0)


def test_arrays_of_the_default_handler_are_counted() -> None:
    with memory_scope("counted", meter="native") as scope:
        made = numpy.empty(5 * MB, dtype="u1")
        made.resize(8 * MB, refcheck=False)
        assert scope.usage.retained_bytes == near(8 * MB)

    assert _core.multiarray.get_handler_name(made) == "default_allocator"
    assert (scope.usage.exact, scope.usage.note) == (True, "")
    del made
    assert scope.owner.live_bytes == near(0)


def test_arrays_of_threads_and_tasks_are_counted() -> None:
    async def fill() -> Any:
        await asyncio.sleep(0)
        return numpy.ones(MB)

    kept: list[Any] = []
    with memory_scope("thread", meter="native") as scope:
        thread = threading.Thread(target=bind_to_current(lambda: kept.append(numpy.ones(MB))))
        thread.start()
        thread.join()
    assert scope.usage.retained_bytes == near(8 * MB)

    @memory_budget("100 MB", meter="native")
    async def hold() -> int:
        kept.append(await fill())
        owner = active_owner()
        assert owner is not None
        return owner.live_bytes

    assert asyncio.run(hold()) == near(8 * MB)


def test_budget_stops_arrays_of_the_default_handler() -> None:
    @memory_budget("10 MiB", meter="native")
    def fill() -> float:
        total = 0.0
        for _ in range(3):
            total += float(numpy.ones(10 * MB).sum())
        return total

    with pytest.raises(BudgetExceeded):
        fill()


LATE_IMPORT = """
import sys
from memtools.scopes import memory_scope
with memory_scope("late", meter="native") as scope:
    import numpy
    kept = numpy.ones(10_000_000)
finders = [finder for finder in sys.meta_path if "Numpy" in type(finder).__name__]
print(scope.usage.retained_bytes > 80_000_000, scope.usage.exact, finders)
"""


def test_arrays_are_counted_where_numpy_is_loaded_late() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE_IMPORT],
        capture_output=True, text=True, timeout=60, check=True, cwd=tempfile.gettempdir(),
    )  # fmt: skip

    assert done.stdout.split() == ["True", "True", "[]"]


SWITCH_BEFORE_HOOKS = """
import types
import numpy
from memtools.ledger import _native
from memtools.ledger.meters import _native as meters

def install():
    numpy.empty(1000)  # made and freed, as by another thread that runs here
    return _native.install()

meters._native = types.SimpleNamespace(**{**vars(_native), "install": install})
meters.NativeMeter()
numpy.empty(1000)
print("alive")
"""


def test_array_freed_before_the_hooks_does_no_harm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWITCH_BEFORE_HOOKS],
        capture_output=True, text=True, timeout=60, check=False, cwd=tempfile.gettempdir(),
    )  # fmt: skip

    assert (done.returncode, done.stdout.split()) == (0, ["alive"]), done.stderr


def test_usage_says_that_arrays_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = _native._NumpyDefault()
    monkeypatch.setattr(_native, "_numpy", unknown)
    monkeypatch.setattr(_native, "_loaded_numpy_api", lambda: None)
    try:
        unknown.settle()
        with memory_scope("uncounted", meter="native") as scope:
            pass
    finally:
        _native._native.disable_fast_path(False)

    assert not scope.usage.exact
    assert scope.usage.note == "numpy's arrays are not counted (its table of functions is not where it used to be)"


@pytest.mark.parametrize("stand_in", [None, object(), ModuleType("numpy")])
def test_stand_in_for_numpy_changes_no_figure(monkeypatch: pytest.MonkeyPatch, stand_in: Any) -> None:
    monkeypatch.setattr(_native, "_numpy", _native._NumpyDefault())
    monkeypatch.setattr(_native, "_loaded_numpy_api", lambda: None)
    monkeypatch.setitem(sys.modules, "numpy", stand_in)

    with memory_scope("plain", budget="10 MiB", meter="native") as scope:
        pass

    assert scope.usage.note == ""


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


@pytest.mark.skipif(
    sys.version_info[:2] in _budgets._HARMED_BY_REFUSALS,
    reason="this Python does not survive a refusal, so no block is refused",
)
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
