"""Every asyncio task of a program has an account under `python -m memtools run`, and the program cannot tell.

Real processes on the stdlib's loop and on uvloop, with task factories, eager tasks, debug mode, threads.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memtools.ledger import native_reason

TIMEOUT_S = 60
REPORT = "\nmemtools: "
LOOPS = {
    "asyncio": "import asyncio\ndef go(main, **options):\n    asyncio.run(main, **options)\n",
    "loop-made-by-hand": (
        "import asyncio\n"
        "def go(main, debug=False):\n"
        "    loop = asyncio.new_event_loop()\n"
        "    loop.set_debug(debug)\n"
        "    try:\n"
        "        loop.run_until_complete(main)\n"
        "    finally:\n"
        "        loop.run_until_complete(loop.shutdown_asyncgens())\n"
        "        loop.close()\n"
    ),
    "uvloop": (
        "import asyncio\n"
        "def go(main, debug=False):\n"
        "    import uvloop\n"  # late: the hook has to wait for it
        "    with asyncio.Runner(loop_factory=uvloop.new_event_loop, debug=debug) as runner:\n"
        "        runner.run(main)\n"
    ),
}
EAGER_CAME_IN = (3, 12)
DEFAULT = "tracemalloc" if native_reason() else "native"

Outcome = tuple[int, str, str, dict[str, Any]]
Run = Callable[..., Outcome]


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Source that defines `go(main)`, which runs it on the loop in question."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    return LOOPS[request.param]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program under memtools; return exit code, output, stderr before the report, and the report."""

    def under(source: str, *options: str, **environment: str) -> Outcome:
        (tmp_path / "program.py").write_text(source, encoding="utf-8")
        path = tmp_path / "report.json"
        words = ["-m", "memtools", "run", "--json", str(path), *options, "program.py"]
        code, out, err = _python(words, tmp_path, environment)
        return code, out, err.partition(REPORT)[0], json.loads(path.read_text())

    return under


def _python(words: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return done.returncode, _without_addresses(done.stdout), _without_addresses(done.stderr)


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", text)


def _program(loop: str, body: str) -> str:
    return loop + textwrap.dedent(body)


def _by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


def test_interleaving_tasks_are_charged_with_their_own_bytes(loop: str, run: Run) -> None:
    source = _program(
        loop,
        """
        async def hold(mebibytes):
            blocks = []
            for _ in range(10):
                blocks.append(b"x" * (mebibytes * 2**20 // 10))
                await asyncio.sleep(0)
        async def main():
            big = asyncio.create_task(hold(50), name="big")
            async with asyncio.TaskGroup() as group:
                group.create_task(hold(1), name="small")
                group.create_task(hold(1), name="small")
            await big
        go(main())
        """,
    )

    code, _, err, report = run(source)

    tasks = _by_name(report["tasks"])
    assert (code, err) == (0, "")
    assert tasks["big"]["peak_bytes"] == pytest.approx(50 * 2**20, rel=0.01)
    assert tasks["small"]["peak_bytes"] == pytest.approx(2**20, rel=0.05)
    assert (tasks["small"]["calls"], tasks["main"]["calls"]) == (2, 1)
    assert tasks["big"]["exact"]
    assert tasks["big"]["retained_bytes"] < 2**20


def test_work_in_a_thread_is_charged_to_the_sending_task(loop: str, run: Run) -> None:
    source = _program(
        loop,
        """
        import time
        def work():
            block = b"x" * (20 * 2**20)
            time.sleep(0.05)
            return len(block)
        async def sender():
            return await asyncio.to_thread(work)
        async def bystander():
            for _ in range(20):
                await asyncio.sleep(0.002)
        async def main():
            await asyncio.gather(sender(), bystander())
        go(main())
        """,
    )

    code, _, _, report = run(source)

    tasks = _by_name(report["tasks"])
    assert code == 0
    assert tasks["sender"]["peak_bytes"] >= 20 * 2**20
    assert tasks["bystander"]["peak_bytes"] < 2**20
    assert tasks["sender"]["exact"] == (report["meters"] == ["native"])  # tracemalloc cannot tell threads apart


UNCHANGED = {
    "fails": """
        async def inner():
            await asyncio.sleep(0)
            raise ValueError("no")
        async def main():
            await asyncio.create_task(inner(), name="inner")
        go(main())
    """,
    "prints the traceback of a task": """
        import sys, traceback
        async def inner():
            await asyncio.sleep(0)
            raise ValueError("no")
        async def main():
            try:
                await asyncio.create_task(inner())
            except ValueError:
                traceback.print_exc(file=sys.stdout)
        go(main())
    """,
    "prints the traceback of a cancelled task": """
        import sys, traceback
        async def inner():
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                traceback.print_exc(file=sys.stdout)
                raise
        async def main():
            task = asyncio.create_task(inner())
            await asyncio.sleep(0)
            task.cancel("enough")
            try:
                await task
            except asyncio.CancelledError:
                traceback.print_exc(file=sys.stdout)
            print(task.cancelled(), asyncio.current_task().cancelling())
        go(main())
    """,
    "prints the traceback of a thread": """
        import sys, traceback
        def work():
            raise KeyError("k")
        async def main():
            try:
                await asyncio.to_thread(work)
            except KeyError:
                traceback.print_exc(file=sys.stdout)
        go(main())
    """,
    "never awaits a failed task": """
        import gc
        async def inner():
            raise ValueError("no")
        async def main():
            asyncio.create_task(inner(), name="lost")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gc.collect()
        go(main())
    """,
    "makes a task of something else": """
        import sys, traceback
        async def main():
            try:
                asyncio.get_running_loop().create_task(print)
            except TypeError:
                traceback.print_exc(file=sys.stdout)
        go(main())
    """,
    "looks at its tasks and its loop": """
        async def inner():
            await asyncio.sleep(0)
        async def main():
            task = asyncio.create_task(inner(), name="inner")
            print(task, task.get_stack(), asyncio.current_task())
            loop = asyncio.get_running_loop()
            print(loop.get_task_factory(), sorted(vars(loop)) if hasattr(loop, '__dict__') else None)
            await task
            print(task)
        go(main())
    """,
    "sets a task factory": """
        async def inner():
            return asyncio.current_task().get_name()
        def factory(loop, coro, **options):
            print("factory", sorted(options))
            return asyncio.Task(coro, loop=loop, **{**options, "name": "made"})
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_task_factory(factory)
            print(loop.get_task_factory() is factory)
            print(await loop.create_task(inner()))
            loop.set_task_factory(None)
            print(loop.get_task_factory())
            print(await loop.create_task(inner(), name="plain"))
        go(main())
    """,
    "runs in debug mode": """
        import sys
        async def inner():
            await asyncio.sleep(0)
            raise ValueError("no")
        async def main():
            task = asyncio.create_task(inner(), name="inner")
            print([frame.name for frame in task._source_traceback][-3:])
            await task
        go(main(), debug=True)
    """,
    "leaves tasks behind": """
        async def forever():
            try:
                await asyncio.sleep(100)
            finally:
                print("cleaned up")
        async def main():
            asyncio.create_task(forever(), name="forever")
            await asyncio.sleep(0)
        asyncio.run(main())
    """,
    "times out": """
        async def main():
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(10)
            except TimeoutError:
                print("timed out", asyncio.current_task().cancelling())
        go(main())
    """,
    "streams": """
        async def numbers():
            try:
                for number in range(5):
                    yield number
                    await asyncio.sleep(0)
            finally:
                print("closed")
        async def main():
            async for number in numbers():
                if number == 3:
                    break
            print(number)
        go(main())
    """,
    "has context variables": """
        import contextvars
        place = contextvars.ContextVar("place", default="nowhere")
        async def inner():
            place.set("inner")
            await asyncio.sleep(0)
            return place.get()
        async def main():
            place.set("main")
            context = contextvars.copy_context()
            task = asyncio.get_running_loop().create_task(inner(), context=context)
            print(await task, place.get(), context[place])
        go(main())
    """,
    "exits inside a task": """
        import sys
        async def main():
            await asyncio.sleep(0)
            sys.exit(3)
        go(main())
    """,
}


@pytest.mark.parametrize("body", UNCHANGED.values(), ids=UNCHANGED)
def test_program_of_tasks_writes_and_ends_as_alone(body: str, loop: str, run: Run, tmp_path: Path) -> None:
    source = _program(loop, body)

    code, out, err, report = run(source)

    alone = _python(["program.py"], tmp_path, {})
    assert (code, out, err) == alone
    assert report["tasks"]


def test_unawaited_coroutine_is_warned_of_as_alone(loop: str, run: Run, tmp_path: Path) -> None:
    source = _program(
        loop,
        """
        async def inner(): pass
        async def main():
            inner()
        go(main())
        """,
    )

    # While tracemalloc is on, the interpreter adds where the coroutine was made: hence the other meter.
    code, out, err, _ = run(source, "--meter", "rss")

    assert (code, out, err) == _python(["program.py"], tmp_path, {})
    assert "never awaited" in err


@pytest.mark.skipif(sys.version_info < EAGER_CAME_IN, reason="eager tasks came with Python 3.12")
def test_eager_tasks_start_at_once_and_have_accounts(loop: str, run: Run, tmp_path: Path) -> None:
    source = _program(
        loop,
        """
        async def quick():
            order.append("quick")
            return bytes(2**20)
        async def slow():
            order.append("slow")
            await asyncio.sleep(0)
            return 1
        order = []
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_task_factory(asyncio.eager_task_factory)
            print(loop.get_task_factory() is asyncio.eager_task_factory)
            first = asyncio.create_task(quick(), name="quick")
            order.append("main")
            second = asyncio.create_task(slow(), name="slow")
            print(first.done(), second.done(), order)
            await asyncio.gather(first, second)
        go(main())
        """,
    )

    alone = _python(["program.py"], tmp_path, {})
    if alone[0] != 0:
        pytest.skip("this uvloop cannot make eager tasks on this Python, with or without us")

    code, out, err, report = run(source)

    assert (code, out, err) == alone
    assert {"quick", "slow", "main"} <= set(_by_name(report["tasks"]))
    assert _by_name(report["tasks"])["quick"]["peak_bytes"] >= 2**20


def test_scopes_without_a_meter_use_that_of_the_run(loop: str, run: Run) -> None:
    source = _program(
        loop,
        """
        from memtools import memory_scope, profile_memory
        @profile_memory
        async def work():
            async with memory_scope("inner"):
                block = bytes(3 * 2**20)
                await asyncio.sleep(0)
        async def main():
            await asyncio.gather(*(work() for _ in range(3)))
        go(main())
        """,
    )

    code, _, err, report = run(source)

    function = _by_name(report["functions"])["work"]
    inner = _by_name(report["scopes"][0]["children"])["inner"]
    assert (code, err) == (0, "")
    assert (function["calls"], inner["calls"]) == (3, 3)
    assert function["meters"] == inner["meters"] == [DEFAULT]
    assert inner["peak_bytes"] == pytest.approx(3 * 2**20, rel=0.02)


@pytest.mark.parametrize(("options", "environment", "meter"), [
    ((), {}, DEFAULT),
    ((), {"MEMTOOLS_METER": "rss"}, "rss"),
    (("--meter", "rss"), {}, "rss"),
    (("--meter", "tracemalloc"), {"MEMTOOLS_METER": "rss"}, "tracemalloc"),
])  # fmt: skip
def test_option_overrides_environment_overrides_default(
    options: tuple[str, ...], environment: dict[str, str], meter: str, run: Run
) -> None:
    _, _, _, report = run("x = bytes(2**20)", *options, **environment)

    assert report["meters"] == [meter]
    assert report["scopes"][0]["meters"] == [meter]
