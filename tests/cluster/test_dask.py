"""Tasks of Dask that are placed by the memory of its workers, on real workers."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

distributed = pytest.importorskip("distributed", reason="distributed is not installed here")
import cloudpickle  # noqa: E402
from distributed import Client, LocalCluster, wait  # noqa: E402

from memtools.cluster import Node  # noqa: E402
from memtools.cluster.dask import MemoryPlugin, needs_of, nodes, submit  # noqa: E402
from memtools.errors import ConfigError  # noqa: E402
from memtools.readings import Level  # noqa: E402

MIB = 2**20
LIMIT = 600 * MIB
TIMEOUT_S = 30
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "fleet_dask.py"

pytestmark = [
    pytest.mark.once,  # starts a cluster of processes
    pytest.mark.leaves(
        "thread", reason="the client is shared by the tests of this file, and starts threads when needed"
    ),
    pytest.mark.leaves("descriptor", reason="it opens connections when needed"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers of two threads."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import a file of tests
    with LocalCluster(
        processes=True,
        n_workers=2,
        threads_per_worker=2,
        memory_limit=LIMIT,
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as made:
        yield made
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client whose workers have the plugin."""
    with Client(cluster) as made:
        made.register_plugin(MemoryPlugin())
        yield made


def hold(size: int, for_s: float = 0.3) -> tuple[int, float, float]:
    """Take so much memory for so long; return the process, and when that was."""
    began = time.time()
    taken = bytearray(size)
    time.sleep(for_s)
    del taken
    return os.getpid(), began, time.time()


def make(size: int) -> int:
    """Take so much memory, and return how much."""
    return len(bytearray(size))


def results(client: Client, futures: list[Any]) -> list[Any]:
    """Wait for the results, but not for ever."""
    wait(futures, timeout=TIMEOUT_S)
    return client.gather(futures)


def most_at_once(spans: list[tuple[int, float, float]]) -> int:
    """Return how many ran in one process at one time."""
    return max(sum(pid == other and start <= began < end for other, start, end in spans) for pid, began, _ in spans)


def until(condition: Callable[[], Any]) -> Any:
    """Return what the condition returns once that is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


class TestNodes:
    """What a client sees of the workers."""

    def test_each_worker_tells_its_readings(self, client: Client) -> None:
        found = nodes(client)

        assert [node.name for node in found] == ["0", "1"]
        assert len({node.pid for node in found}) == 2
        for node in found:
            assert node.limit_bytes == LIMIT
            assert 0 < node.used_bytes < LIMIT
            assert node.headroom_bytes is not None
            assert 0 < node.headroom_bytes < LIMIT
            assert node.level is Level.NORMAL
            assert not node.is_stale

    def test_what_runs_is_counted_until_it_ends(self, client: Client) -> None:
        future = submit(client, hold, MIB, 1.5, needs="100 MiB")

        assert until(lambda: sum(node.leased_bytes for node in nodes(client))) == 100 * MIB
        results(client, [future])
        until(lambda: not sum(node.leased_bytes for node in nodes(client)))


class TestPlacement:
    """Where tasks run, and when."""

    def test_task_waits_while_no_worker_has_room(self, client: Client) -> None:
        futures = [submit(client, hold, MIB, needs="250 MiB", pure=False) for _ in range(6)]

        spans = results(client, futures)

        assert most_at_once(spans) == 1  # where there are two threads
        assert len({pid for pid, _, _ in spans}) == 2

    def test_tasks_that_fit_run_side_by_side(self, client: Client) -> None:
        futures = [submit(client, hold, MIB, needs="50 MiB", pure=False) for _ in range(4)]

        assert most_at_once(results(client, futures)) == 2

    def test_larger_than_every_worker_is_refused(self, client: Client) -> None:
        with pytest.raises(ConfigError, match=r"needs='2 GiB' is not accepted: use at most \d+\.\d MiB"):
            submit(client, make, 1, needs="2 GiB")

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"needs": "much"}, "needs"),
            ({"needs": 0}, "needs"),
            ({"needs": 1, "actor": True}, "actor"),
            ({"needs": 1, "workers": ["0"], "allow_other_workers": True}, "allow_other_workers"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, client: Client, options: dict[str, Any], name: str) -> None:
        with pytest.raises(ConfigError, match=name):
            submit(client, make, 1, **options)

    def test_futures_are_arguments(self, client: Client) -> None:
        first = submit(client, make, 1000, needs="10 MiB")

        assert submit(client, sum, [first, first], needs="10 MiB").result(TIMEOUT_S) == 2000

    def test_options_of_dask_and_of_the_function_pass(self, client: Client) -> None:
        future = submit(client, hold, MIB, for_s=0.0, needs="10 MiB", key="named", priority=1, workers=[1])

        assert future.key == "named"
        assert future.result(TIMEOUT_S)[0] == nodes(client)[1].pid

    def test_exception_of_the_function_comes_out(self, client: Client) -> None:
        with pytest.raises(ZeroDivisionError):
            submit(client, divmod, 1, 0, needs="10 MiB").result(TIMEOUT_S)

    def test_coroutine_function_runs_in_the_loop(self, client: Client) -> None:
        async def pause(number: int) -> int:
            await asyncio.sleep(0.01)
            return number

        assert submit(client, pause, 3, needs="10 MiB").result(TIMEOUT_S) == 3

    def test_cancelled_task_gives_its_place_to_the_next(self, client: Client) -> None:
        running = [submit(client, hold, MIB, needs="250 MiB", pure=False) for _ in range(2)]
        waiting = [submit(client, hold, MIB, 20.0, needs="250 MiB", pure=False) for _ in range(2)]
        last = submit(client, hold, MIB, 0.0, needs="250 MiB")
        client.cancel(waiting)

        results(client, [*running, last])

        assert all(future.cancelled() for future in waiting)


class TestAuto:
    """Sizes that are learned."""

    def test_default_is_the_share_of_a_thread(self, client: Client) -> None:
        def never_called() -> None:
            pass

        found = needs_of(client, never_called)

        assert (found.runs, found.peak_bytes) == (0, None)
        assert 50 * MIB < found.value_bytes < LIMIT / 2

    def test_five_runs_teach_the_peak_and_a_quarter(self, client: Client) -> None:
        def build(size: int) -> int:
            return len(bytearray(size))

        for size in range(5):
            submit(client, build, (20 + size) * MIB, needs="auto").result(TIMEOUT_S)

        found = until(lambda: (told := needs_of(client, build)).peak_bytes and told)
        assert found.runs == 5
        assert found.peak_bytes >= 20 * MIB
        assert found.value_bytes == pytest.approx(1.25 * found.peak_bytes, abs=1)
        assert "in 5 runs" in str(found)
        if found.exact:
            assert found.peak_bytes == pytest.approx(24 * MIB, rel=0.05)

    def test_learned_size_holds_tasks_back(self, client: Client) -> None:
        def build(size: int, for_s: float) -> tuple[int, float, float]:
            began = time.time()
            taken = bytearray(size)
            time.sleep(for_s)
            return os.getpid(), began, time.time() + 0 * len(taken)

        for number in range(5):
            submit(client, build, 160 * MIB, 0.01 * number, needs="250 MiB").result(TIMEOUT_S)
        until(lambda: needs_of(client, build).peak_bytes)

        spans = results(client, [submit(client, build, 160 * MIB, 0.3, pure=False) for _ in range(4)])

        assert most_at_once(spans) == 1


class TestDeath:
    """Workers that are killed: Dask's business, with the sizes kept."""

    def test_tasks_of_a_killed_worker_run_elsewhere(self, client: Client) -> None:
        victim = nodes(client)[0]
        futures = [submit(client, hold, MIB, 0.5, needs="250 MiB", pure=False) for _ in range(4)]
        until(lambda: nodes(client)[0].leased_bytes)
        os.kill(victim.pid, signal.SIGKILL)

        spans = results(client, futures)

        assert len(spans) == 4
        assert victim.pid not in {pid for pid, _, _ in spans}
        assert most_at_once(spans) == 1
        until(lambda: len(nodes(client)) == 2)

    def test_tasks_wait_for_workers_when_all_are_killed(self, client: Client) -> None:
        victims: tuple[Node, ...] = nodes(client)
        futures = [submit(client, hold, MIB, 0.5, needs="250 MiB", pure=False) for _ in range(4)]
        until(lambda: all(node.leased_bytes for node in nodes(client)))
        for node in victims:
            os.kill(node.pid, signal.SIGKILL)

        spans = results(client, futures)

        assert most_at_once(spans) == 1
        assert not {node.pid for node in victims} & {pid for pid, _, _ in spans}
        until(lambda: len(nodes(client)) == 2)


async def test_asynchronous_client_gets_awaitables(cluster: LocalCluster, client: Client) -> None:
    async with Client(cluster.scheduler_address, asynchronous=True) as own:
        found: Any = nodes(own)
        future: Any = await submit(own, make, 12_345, needs="10 MiB")  # type: ignore[misc]
        learned: Any = submit(own, make, 12_346)

        assert len(await found) == 2
        assert await future == 12_345
        assert await (await learned) == 12_346


def test_client_without_the_plugin_is_told_of_it() -> None:
    with (
        LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as bare,
        Client(bare) as client,
    ):
        assert nodes(client) == ()
        with pytest.raises(ConfigError, match=r"register_plugin\(MemoryPlugin\(\)\)"):
            submit(client, make, 1, needs="1 MiB")

        client.register_plugin(MemoryPlugin())
        assert submit(client, make, 1, needs="1 MiB").result(TIMEOUT_S) == 1


def test_missing_library_error_names_the_install_command() -> None:
    program = (
        "import sys\n"
        "sys.modules['distributed'] = None\n"
        "from memtools.errors import MissingExtraError\n"
        "try:\n import memtools.cluster.dask\n"
        "except MissingExtraError as error:\n print(error)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert "pip install 'memtools[dask]'" in done.stdout


def test_example_program_learns_a_size_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "total 9360" in done.stdout
    assert "needs='1 GiB' is not accepted" in done.stdout
