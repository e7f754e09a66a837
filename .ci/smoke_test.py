#!/usr/bin/env python3
"""Check an installed memtools in a few seconds, for wheels: `python -P smoke_test.py [--without-extensions]`.

Needs nothing but memtools and its dependencies. With C extensions the figures have to be exact and a runaway has to be
stopped in the middle of its work; where the native ledger declines (free-threaded Pythons), or none was built, its
reason has to be there, and memtools has to work all the same.
"""
# ruff: noqa: T201  # a script's answer is what it prints

import argparse
import asyncio
import subprocess
import sys
import sysconfig
from pathlib import Path

import memtools
from memtools import BoundedList, BudgetExceeded, WeakCache, memory_scope, task_scope
from memtools.ledger import choose_meter, native_reason

MIB = 1 << 20


def main() -> int:
    """Run the checks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-extensions", action="store_true", help="expect a package without C extensions")
    expects_none = parser.parse_args().without_extensions

    package = Path(memtools.__file__).parent
    print(f"memtools in {package}, Python {sys.version}")
    assert Path.cwd() not in package.parents or "site-packages" in package.parts, "the source was imported"
    built = [path.name for path in package.rglob("*") if path.suffix in (".so", ".pyd")]
    print(f"C extensions: {', '.join(built) or 'none'}; native ledger: {native_reason() or 'available'}")
    assert len(built) == (0 if expects_none else 3)
    if expects_none or sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert native_reason()
    else:
        assert native_reason() == ""
        check_exact_figures()
        check_runaway()

    check_structures()
    asyncio.run(check_tasks())
    check_command_line(expects_none=expects_none)
    print("The smoke test passed.")
    return 0


def check_exact_figures() -> None:
    """A block of a known size is counted to the byte, and found again after the end."""
    with memory_scope("exact") as scope:
        block = bytearray(5 * MIB)
    assert scope.usage.exact, scope.usage
    assert 0 <= scope.usage.retained_bytes - 5 * MIB < 10_000, scope.usage
    del block
    assert scope.owner.live_bytes < 10_000


def check_runaway() -> None:
    """A loop that never returns is stopped."""
    rows: list[bytes] = []
    try:
        with memory_scope("runaway", budget="20 MiB"):
            while len(rows) < 1_000:
                rows.append(bytes(MIB))
    except BudgetExceeded as error:
        assert 20 * MIB <= error.used_bytes < 40 * MIB, error  # noqa: PT017  # pytest is not needed here
    else:
        raise AssertionError("the runaway was not stopped")


def check_structures() -> None:
    """Bounded lists keep their bound, and a cache its entries."""
    recent: BoundedList[int] = BoundedList(maxlen=100)
    recent.extend(range(1_000))
    recent.append(1_000)
    assert recent[-1] == 1_000
    assert len(recent) <= 100
    cache: WeakCache[str, BoundedList[int]] = WeakCache(strong=1)
    assert cache.get_or_create("a", lambda: recent) is recent


async def check_tasks() -> None:
    """Tasks have accounts, with whichever meter."""
    async with task_scope(max_running=2) as tasks:
        for number in range(4):
            tasks.create_task(asyncio.sleep(0.001, number), name=f"task {number}")
    assert choose_meter().name in ("native", "rss")


def check_command_line(*, expects_none: bool) -> None:
    """`run` runs and reports, `info` says what is there."""
    code = "rows = [str(number) for number in range(100_000)]; print(len(rows))"
    done = _memtools("run", "-c", code)
    assert done.stdout == "100000\n", done
    assert "counted by the" in done.stderr, done
    facts = _memtools("info").stdout
    assert ("to build them" in facts) is expects_none, facts


def _memtools(*words: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-P", "-m", "memtools", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done
    return done


if __name__ == "__main__":
    sys.exit(main())
