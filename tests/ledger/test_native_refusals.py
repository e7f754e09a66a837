"""Blocks that are refused, because they are too large for a budget."""

import asyncio
import io
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from memtools.decorators import memory_budget
from memtools.errors import BudgetExceeded, ConfigError, MemtoolsWarning
from memtools.events import BudgetOverrun, subscribe
from memtools.ledger import native_reason, open_owners, statistics
from memtools.scopes import _budgets, memory_scope, task_scope

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
IS_HARMED = sys.version_info[:2] in _budgets._HARMED_BY_REFUSALS
needs_deny = pytest.mark.skipif(IS_HARMED, reason="this Python does not survive a refusal, so no block is refused")

MIB = 2**20
BUDGET = 20 * MIB
GIANT = 10**9


def grow_a_bytearray() -> object:
    kept, more = bytearray(MIB), bytes(8 * MIB)
    while True:
        kept.extend(more)


def grow_a_buffer() -> object:
    kept = io.BytesIO()
    kept.seek(GIANT)
    return kept.write(b"x")


GIANTS: dict[str, Callable[[], object]] = {
    "bytes": lambda: bytes(GIANT),
    "bytearray": lambda: bytearray(GIANT),
    "text": lambda: "x" * GIANT,
    "list": lambda: [0] * GIANT,
    "grown bytearray": grow_a_bytearray,
    "buffer": grow_a_buffer,
}


@needs_deny
@pytest.mark.parametrize("make", GIANTS.values(), ids=GIANTS)
def test_huge_block_is_refused_under_deny(make: Callable[[], object]) -> None:
    with memory_scope("refused", meter="native", budget=BUDGET, on_exceed="deny") as scope:
        with pytest.raises(MemoryError):
            make()
        kept = bytes(MIB)

    assert scope.usage.peak_bytes <= BUDGET
    count, wanted = scope.owner.refusals
    assert count == 1
    assert BUDGET < wanted <= 8 * GIANT + MIB
    assert len(kept) == MIB


@needs_deny
@pytest.mark.parametrize("make", GIANTS.values(), ids=GIANTS)
def test_error_after_a_refusal_becomes_budget_exceeded(make: Callable[[], object]) -> None:
    scope = memory_scope("stopped", meter="native", budget=BUDGET, on_exceed="deny")

    with pytest.raises(BudgetExceeded) as caught, scope:
        make()

    assert scope.usage.peak_bytes <= BUDGET * 1.1
    assert caught.value.used_bytes == scope.owner.refusals[1] > BUDGET
    assert isinstance(caught.value.__cause__, MemoryError)
    assert open_owners() == ()


def test_no_block_is_refused_under_raise() -> None:
    scope = memory_scope("large", meter="native", budget=BUDGET)
    before = statistics().refused_blocks

    with pytest.raises(BudgetExceeded) as caught, scope:
        made = len(bytes(5 * BUDGET))

    assert made == 5 * BUDGET
    assert caught.value.used_bytes == scope.usage.peak_bytes >= made
    assert statistics().refused_blocks == before


class Panic(BaseException):
    """What an extension in another language raises for a refused block."""


@needs_deny
@pytest.mark.parametrize("error", [ValueError("invalid JSON"), Panic(), ExceptionGroup("several", [MemoryError()])])
def test_any_error_after_a_refusal_becomes_the_cause(error: BaseException) -> None:
    def load() -> None:
        try:
            bytes(GIANT)
        except MemoryError:
            raise error from None

    with (
        pytest.raises(BudgetExceeded) as caught,
        memory_scope("translated", meter="native", budget=BUDGET, on_exceed="deny"),
    ):
        load()

    assert caught.value.__cause__ is error


@needs_deny
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_end_of_more_than_the_owner_passes_after_a_refusal(error: type[BaseException]) -> None:
    def load() -> None:
        try:
            bytes(GIANT)
        except MemoryError:
            raise error from None

    with pytest.raises(error), memory_scope("ended", meter="native", budget=BUDGET, on_exceed="deny"):
        load()


@needs_deny
def test_blocks_that_are_not_far_above_the_rest_are_made() -> None:
    with (
        suppress(BudgetExceeded),
        memory_scope("many", meter="native", budget=BUDGET, on_exceed="deny") as scope,
    ):
        kept = [bytes(4 * MIB) for _ in range(6)]
        del kept

    assert scope.owner.refusals == (0, 0)
    assert scope.usage.peak_bytes > BUDGET


def test_deny_is_raise_where_python_does_not_survive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_budgets, "_HARMED_BY_REFUSALS", {sys.version_info[:2]})

    with pytest.warns(MemtoolsWarning, match="'deny' is treated as 'raise'"):
        scope = memory_scope("harmed", meter="native", budget=BUDGET, on_exceed="deny")
    with pytest.raises(BudgetExceeded), scope:
        bytes(2 * BUDGET)

    assert scope.owner.refusals == (0, 0)


@needs_deny
def test_refused_resize_leaves_the_old_block_unchanged() -> None:
    with memory_scope("resized", meter="native", budget=BUDGET, on_exceed="deny") as scope:
        kept = bytearray(b"abcd" * (2 * MIB))
        more = bytes(8 * MIB)
        before = scope.usage.retained_bytes
        with pytest.raises(MemoryError):
            kept += more
        after = scope.usage.retained_bytes

    assert (len(kept), kept[:8], kept[-4:]) == (8 * MIB, b"abcdabcd", b"abcd")
    assert after == pytest.approx(before, abs=10_000)


@needs_deny
def test_refusals_are_counted_for_the_process() -> None:
    before = statistics().refused_blocks

    for _ in range(2):
        with memory_scope("refused", meter="native", budget=BUDGET, on_exceed="deny"), pytest.raises(MemoryError):
            bytes(GIANT)

    assert statistics().refused_blocks - before == 2


@needs_deny
def test_block_within_the_budget_is_never_refused() -> None:
    with memory_scope("modest", meter="native", budget=BUDGET, on_exceed="deny") as scope:
        for _ in range(20):
            kept = bytes(BUDGET - MIB)
            del kept

    assert scope.owner.refusals == (0, 0)


@needs_deny
def test_other_owners_are_refused_nothing() -> None:
    made: list[int] = []
    with memory_scope("outer", meter="native") as outer:
        with memory_scope("bounded", meter="native", budget=MIB, on_exceed="deny"):
            thread = threading.Thread(target=lambda: made.append(len(bytes(50 * MIB))))
            thread.start()
            thread.join()
        made.append(len(bytes(50 * MIB)))

    assert made == [50 * MIB] * 2
    assert outer.owner.refusals == (0, 0)


@needs_deny
def test_innermost_hard_limit_refuses() -> None:
    with memory_scope("outer", meter="native", budget=100 * MIB, on_exceed="deny") as outer:
        inner = memory_scope("inner", meter="native", budget=BUDGET, on_exceed="deny")
        with inner, pytest.raises(MemoryError):
            bytes(50 * MIB)
        with memory_scope("free", meter="native") as free, pytest.raises(MemoryError):
            bytes(150 * MIB)

    assert (inner.owner.refusals[0], outer.owner.refusals[0], free.owner.refusals[0]) == (1, 1, 0)


@needs_deny
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_refusal_is_emitted_once_and_not_raised_at_the_end(is_elsewhere: bool) -> None:
    overruns: list[BudgetOverrun] = []

    def refused() -> None:
        with memory_scope("told", meter="native", budget=BUDGET, on_exceed="deny"):
            for _ in range(3):
                with pytest.raises(MemoryError):
                    bytes(GIANT)

    with subscribe(lambda event: overruns.append(event) if isinstance(event, BudgetOverrun) else None):
        if is_elsewhere:
            thread = threading.Thread(target=refused)
            thread.start()
            thread.join()
        else:
            refused()

    (told,) = overruns
    assert (told.name, told.budget_bytes, told.in_flight) == ("told", BUDGET, True)
    assert told.used_bytes >= GIANT


@needs_deny
def test_small_blocks_under_deny_are_stopped_as_under_raise() -> None:
    scope = memory_scope("adds up", meter="native", budget=BUDGET, on_exceed="deny")

    with pytest.raises(BudgetExceeded), scope:
        sum(map(len, [bytearray(1000) for _ in range(10**6)]))

    assert scope.usage.peak_bytes <= BUDGET * 1.1 + MIB


@needs_deny
def test_refused_decorated_call_does_not_affect_the_next() -> None:
    @memory_budget(BUDGET, on_exceed="deny", meter="native")
    def load(size: int) -> int:
        return len(bytes(size))

    with pytest.raises(BudgetExceeded):
        load(GIANT)

    assert load(MIB) == MIB


@needs_deny
async def test_only_the_task_over_budget_is_refused() -> None:
    @memory_budget(BUDGET, on_exceed="deny", meter="native")
    async def greedy() -> str:
        await asyncio.sleep(0)
        try:
            bytes(GIANT)
        except MemoryError:
            return "refused"
        return "made"

    async def noisy() -> int:
        sizes = []
        for _ in range(5):
            sizes.append(len(bytes(2 * BUDGET)))
            await asyncio.sleep(0)
        return min(sizes)

    async with task_scope(meter="native") as tasks:
        first, second = tasks.create_task(greedy()), tasks.create_task(noisy())

    assert await first == "refused"
    assert await second == 2 * BUDGET


@needs_deny
def test_opening_of_owners_is_never_refused() -> None:
    # A table of the ledger grows by more than 64 KiB meanwhile, charged to the parent.
    with memory_scope("crowded", meter="native", budget="8 MiB", on_exceed="deny") as crowded:
        filler = bytes(8 * MIB - 200_000)
        del filler
        before = len(open_owners())
        scopes = [memory_scope("one of many", meter="native") for _ in range(3000)]
        entered: list[memory_scope] = []
        with suppress(BudgetExceeded):
            entered.extend(map(memory_scope.__enter__, scopes))
        opened = len(open_owners()) - before
        for scope in reversed(entered):
            scope.__exit__(None, None, None)

    assert opened == len(entered) > 0
    assert crowded.owner.refusals[0] == 0


@needs_deny
@pytest.mark.parametrize("meter", ["tracemalloc", "rss"])
def test_deny_with_a_meter_that_cannot_refuse_raises(meter: str) -> None:
    for make in (
        lambda: memory_scope("cannot", budget=BUDGET, on_exceed="deny", meter=meter),
        lambda: memory_budget(BUDGET, on_exceed="deny", meter=meter),
    ):
        with pytest.raises(ConfigError, match=rf"on_exceed='deny' requires meter='native' \(meter is '{meter}'\)"):
            make()


@pytest.mark.parametrize(("measure", "hard"), [("retained", True), ("rss", True), ("peak", False)])
def test_deny_without_an_in_flight_peak_raises(measure: str, hard: bool) -> None:
    with pytest.raises(ConfigError, match="requires measure='peak' and hard=True"):
        memory_budget(BUDGET, on_exceed="deny", measure=measure, hard=hard, meter="native")  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on a plain scope in a bare task is followed")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a generator can be tracked since Python 3.12")
def test_untracked_scope_under_deny_raises_at_entry() -> None:
    def work() -> Iterator[None]:
        with memory_scope("lost", budget=BUDGET, on_exceed="deny", meter="native"):
            yield

    with pytest.raises(ConfigError, match=r"requires a block that can be tracked \(process-wide"):
        next(work())

    assert open_owners() == ()
