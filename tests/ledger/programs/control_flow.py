"""Programs of random control flow, which are stopped by their budget, and what must hold after each stop.

    python control_flow.py [--programs N] [--seed N] [--threads] [--tracer NAME]

prints how many programs were stopped, and fails with the source of a program that was left in a bad state.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from traceback import extract_tb
from types import TracebackType
from typing import Any

from memtools import BudgetExceeded, memory_scope
from memtools.ledger import active_owner, open_owners

MAX_DEPTH = 4
BLOCKS = 400


class State:
    """Which blocks of a program are entered, and what it holds."""

    def __init__(self) -> None:
        self.entered: set[int] = set()
        self.keep: list[bytes] = []
        self.locks = [threading.Lock() for _ in range(BLOCKS)]

    def problems(self) -> list[str]:
        """Say what was left entered."""
        found = [f"block {number} was entered and not left" for number in sorted(self.entered)]
        found += [f"lock {number} is held" for number, lock in enumerate(self.locks) if lock.locked()]
        if active_owner() is not None:
            found.append(f"{active_owner()!r} is the active owner")
        return found


class Block:
    """A context manager in Python, which allocates a little where it is entered and left."""

    def __init__(self, state: State, number: int) -> None:
        self._state = state
        self._number = number

    def __enter__(self) -> None:
        little(self._state)
        self._state.entered.add(self._number)
        little(self._state)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        little(self._state)
        self._state.entered.discard(self._number)

    async def __aenter__(self) -> None:
        await asyncio.sleep(0)
        self.__enter__()
        await asyncio.sleep(0)

    async def __aexit__(self, *about: object) -> None:
        little(self._state)
        await asyncio.sleep(0)
        self._state.entered.discard(self._number)


@contextlib.contextmanager
def block(state: State, number: int) -> Iterator[None]:
    state.entered.add(number)
    try:
        little(state)
        yield
    finally:
        little(state)
        state.entered.discard(number)


@contextlib.asynccontextmanager
async def async_block(state: State, number: int) -> AsyncIterator[None]:
    state.entered.add(number)
    try:
        await asyncio.sleep(0)
        yield
    finally:
        little(state)
        await asyncio.sleep(0)
        state.entered.discard(number)


def little(state: State) -> None:
    for _ in range(2):
        state.keep.append(bytes(300))


def grow(state: State, size: int) -> bool:
    state.keep.append(bytes(size))
    return True


def numbers(state: State, number: int, count: int) -> Iterator[int]:
    state.entered.add(number)
    try:
        for item in range(count):
            state.keep.append(bytes(2000))
            yield item
    finally:
        state.entered.discard(number)


async def async_numbers(state: State, count: int) -> AsyncIterator[int]:
    for item in range(count):
        await asyncio.sleep(0)
        state.keep.append(bytes(2000))
        yield item


class Generator:
    """Writes the source of one program; `choose(n)` returns a number below n."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._numbers = itertools.count()
        self._lines: list[str] = []

    def program(self) -> tuple[str, bool]:
        """Return the source of a function `job(state)`, and whether it is a coroutine function."""
        is_async = self._choose(4) == 0
        self._lines = [f"{'async ' * is_async}def job(state):", "    keep = state.keep"]
        for _ in range(1 + self._choose(3)):
            self._statement(1, is_async, in_loop=False)
        return "\n".join(self._lines) + "\n", is_async

    def _number(self) -> int:
        return next(self._numbers) % BLOCKS

    def _write(self, depth: int, line: str) -> None:
        self._lines.append("    " * depth + line)

    def _growth(self) -> str:
        size = 1000 * (1 + self._choose(20))
        return (
            f"keep.append(bytes({size}))",
            f"grow(state, {size})",
            f"keep.extend(map(lambda n: bytes({size}), range(2)))",
            f"keep.append([bytes({size}) for _ in range(2)])",
            f"keep.append({{n: bytes({size}) for n in range(2)}})",
            f"keep.append(b''.join(bytes({size}) for _ in range(3)))",
            f"keep.extend(sorted(range(3), key=lambda n: grow(state, {size})))",
            f"keep.append([[bytes({size}) for _ in range(2)] for _ in range(2)])",
        )[self._choose(8)]

    def _body(self, depth: int, is_async: bool, in_loop: bool, *, is_whole: bool = True) -> None:
        """Write what follows a line that ends with a colon; in the same line, now and then, if nothing follows."""
        if is_whole and self._choose(4) == 0:
            self._lines[-1] += " " + "; ".join(self._growth() for _ in range(1 + self._choose(2)))
            return
        for _ in range(1 + self._choose(2)):
            self._statement(depth, is_async, in_loop=in_loop)
        if in_loop and self._choose(5) == 0:
            self._write(depth, ("break", "continue", "return len(keep)")[self._choose(3)])

    def _statement(self, depth: int, is_async: bool, *, in_loop: bool) -> None:
        if depth > MAX_DEPTH or self._choose(4) == 0:
            self._write(depth, self._growth())
            return
        kinds = [
            self._for, self._while, self._while_true, self._with, self._try_finally, self._try_except, self._match,
            self._function, self._nested_with, self._swallow, self._generator, self._if, self._group,
            self._cleanup_loop,
        ]  # fmt: skip
        if is_async:
            kinds += [self._async_with, self._async_for, self._await, self._async_with]
        kinds[self._choose(len(kinds))](depth, is_async, in_loop)

    def _for(self, depth: int, is_async: bool, in_loop: bool) -> None:
        iterable = ("range(3)", "[1, 2]", f"numbers(state, {self._number()}, 3)", "map(bytes, [900] * 3)")
        self._write(depth, f"for n{depth} in {iterable[self._choose(4)]}:")
        self._body(depth + 1, is_async, in_loop=True)
        if self._choose(5) == 0:
            self._write(depth, "else:")
            self._body(depth + 1, is_async, in_loop)

    def _while(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, f"left{depth} = [0] * 3")
        if self._choose(2):
            number = self._number()
            self._write(depth, f"state.entered.add({number})")
            self._write(depth, "try:")
            self._write(depth + 1, f"while left{depth}: left{depth}.pop(); {self._growth()}")
            self._write(depth, f"finally: state.entered.discard({number})")
            return
        self._write(depth, f"while left{depth}{(' and len(keep) < 5000', '')[self._choose(2)]}:")
        self._write(depth + 1, f"left{depth}.pop()")
        self._statement(depth + 1, is_async, in_loop=True)

    def _while_true(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, f"left{depth} = [0] * 3")
        number = self._number()
        self._write(depth, f"with state.locks[{number}]:")
        self._write(depth + 1, "while True:")
        self._write(depth + 2, f"if not left{depth}: break")
        self._write(depth + 2, f"left{depth}.pop()")
        self._statement(depth + 2, is_async, in_loop=True)

    def _manager(self) -> str:
        number = self._number()
        return (f"state.locks[{number}]", f"Block(state, {number})", f"block(state, {number})")[self._choose(3)]

    def _with(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, f"with {', '.join(self._manager() for _ in range(1 + self._choose(2)))}:")
        self._body(depth + 1, is_async, in_loop)

    def _nested_with(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, "with contextlib.ExitStack() as stack:")
        self._write(depth + 1, f"stack.enter_context({self._manager()})")
        self._write(depth + 1, f"for manager in {self._manager()}, {self._manager()}: stack.enter_context(manager)")
        self._statement(depth + 1, is_async, in_loop=in_loop)

    def _try_finally(self, depth: int, is_async: bool, in_loop: bool) -> None:
        number = self._number()
        self._write(depth, f"state.entered.add({number})")
        self._write(depth, "try:")
        self._body(depth + 1, is_async, in_loop)
        self._write(depth, "finally:")
        if self._choose(2):
            self._write(depth + 1, "little(state)")
        self._write(depth + 1, f"state.entered.discard({number})")

    def _cleanup_loop(self, depth: int, is_async: bool, in_loop: bool) -> None:
        number = self._number()
        self._write(depth, f"state.locks[{number}].acquire()")
        self._write(depth, "try:")
        self._body(depth + 1, is_async, in_loop)
        self._write(depth, "finally:")
        self._write(depth + 1, "for _ in range(3):")
        self._write(depth + 2, "try: keep.append(bytes(400))")
        self._write(depth + 2, "except OSError: little(state)")
        self._write(depth + 1, f"state.locks[{number}].release()")

    def _try_except(self, depth: int, is_async: bool, in_loop: bool) -> None:
        number = self._number()
        self._write(depth, "try:")
        self._body(depth + 1, is_async, in_loop, is_whole=False)
        self._write(depth + 1, f"{('pass', 'raise ValueError')[self._choose(2)]}")
        self._write(depth, "except ValueError as error:")
        self._write(depth + 1, f"state.entered.add({number})")
        self._write(depth + 1, "try: little(state)")
        self._write(depth + 1, "except KeyError: pass")
        self._write(depth + 1, "for _ in range(2): keep.append(bytes(500))")
        self._write(depth + 1, f"state.entered.discard({number})")
        if self._choose(2):
            self._write(depth, "else:")
            self._body(depth + 1, is_async, in_loop)

    def _group(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, "try:")
        self._body(depth + 1, is_async, in_loop=False, is_whole=False)
        self._write(depth + 1, "raise ExceptionGroup('group', [ValueError(), KeyError()])")
        self._write(depth, "except* ValueError:")
        self._write(depth + 1, "little(state)")
        self._write(depth, "except* KeyError: little(state)")

    def _swallow(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, "try:")
        self._body(depth + 1, is_async, in_loop)
        self._write(depth, "except Exception:")
        self._write(depth + 1, "pass")

    def _match(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, f"match len(keep) % 3, [{self._choose(3)}]:")
        for case in ("0, [1]", "1 | 2, [first, *rest]", "_"):
            self._write(depth + 1, f"case {case}:")
            self._body(depth + 2, is_async, in_loop)

    def _if(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, "if len(keep) % 2:")
        self._body(depth + 1, is_async, in_loop)
        self._write(depth, "else:")
        self._body(depth + 1, is_async, in_loop)

    def _function(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, f"def inner{depth}():")
        for _ in range(1 + self._choose(2)):
            self._statement(depth + 1, False, in_loop=False)
        self._write(depth, f"inner{depth}()")

    def _generator(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, f"def items{depth}():")
        self._statement(depth + 1, False, in_loop=False)
        self._write(depth + 1, f"with {self._manager()}:")
        self._write(depth + 2, "for n in range(3):")
        self._write(depth + 3, f"{self._growth()}; yield n")
        consumer = ("for n in {}: keep.append(bytes(800))", "list({})", "sum({})", "[*{}]")[self._choose(4)]
        self._write(depth, consumer.format(f"items{depth}()"))

    def _async_with(self, depth: int, is_async: bool, in_loop: bool) -> None:
        number = self._number()
        manager = (f"Block(state, {number})", f"async_block(state, {number})")[self._choose(2)]
        self._write(depth, f"async with {manager}:")
        self._body(depth + 1, is_async, in_loop)

    def _async_for(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, f"async for n{depth} in async_numbers(state, 3):")
        self._body(depth + 1, is_async, in_loop=True)

    def _await(self, depth: int, is_async: bool, in_loop: bool) -> None:
        self._write(depth, f"async def inner{depth}():")
        self._statement(depth + 1, True, in_loop=False)
        self._write(depth, f"await inner{depth}()")


def run(job: Callable[[State], Any], is_async: bool, state: State) -> None:
    # Any: a result, or a coroutine
    if is_async:
        asyncio.run(job(state))
    else:
        job(state)


def peak_of(job: Callable[[State], Any], is_async: bool) -> int:
    """Return the peak of a program that is not stopped, in bytes."""
    state = State()
    scope = memory_scope("measured", meter="native")
    with scope:
        run(job, is_async, state)
    return scope.usage.peak_bytes


def check(choose: Callable[[int], int], *, in_thread: bool, budgets: int = 2) -> tuple[int, list[str], str]:
    """Make a program, stop it at some of its allocations; return how often it was stopped, problems and source."""
    source, is_async = Generator(choose).program()
    names: dict[str, Any] = dict(globals())  # Any: what the program uses
    exec(compile(source, "<program>", "exec"), names)
    job = names["job"]
    peak = peak_of(job, is_async)
    stopped = 0
    problems: list[str] = []

    def stop(budget: int) -> None:
        nonlocal stopped
        state = State()
        try:
            with memory_scope("stopped", meter="native", budget=budget):
                run(job, is_async, state)
        except BudgetExceeded as error:
            stopped += 1
            places = " < ".join(f"{place.name}:{place.lineno}" for place in reversed(extract_tb(error.__traceback__)))
            error.__traceback__ = None
            del error
            if state.problems():
                problems.append(f"stopped at {places}")
        except BaseException as error:
            problems.append(f"under a budget of {budget} of {peak} bytes it ended with {error!r}")
        problems.extend(state.problems())

    for _ in range(budgets):
        budget = max(peak * (1 + choose(90)) // 100, 1)
        if in_thread:
            thread = threading.Thread(target=stop, args=(budget,))
            thread.start()
            thread.join()
        else:
            stop(budget)
    problems.extend(f"{owner!r} is open" for owner in open_owners())
    return stopped, problems, source


def trace(*_event: object) -> object:
    """Do what a debugger does that has nothing to do."""
    return trace


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", action="store_true")
    parser.add_argument("--tracer", choices=["settrace", "setprofile"])
    options = parser.parse_args()
    if options.tracer:
        for module in sys, threading:
            getattr(module, options.tracer)(trace)
    stops = bad = 0
    for seed in range(options.seed, options.seed + options.programs):
        chooser = random.Random(seed)
        stopped, problems, source = check(chooser.randrange, in_thread=options.threads)
        stops += stopped
        if problems:
            bad += 1
            if bad <= 3:
                print(f"# seed {seed}", *problems, source, sep="\n")
    print(f"{options.programs} programs, {stops} stops, {bad} left in a bad state")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
