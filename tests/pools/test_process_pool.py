"""`process_pool_scope`: workers that die, hang, cannot start, and answer what cannot be sent."""

import functools
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pool_tasks
import pytest

from memtools import BudgetExceeded, ConfigError, ScopeClosed, memory_scope
from memtools.errors import WorkerDied, WorkerStartFailed
from memtools.pools import process_pool_scope as spawning_pool
from memtools.readings import resident_bytes
from memtools.readings._shares import UNKNOWN, memory_share, parse_rollup

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")

# By the server that the fixture has started: spawned workers take half a second each.
process_pool_scope = functools.partial(spawning_pool, start="forkserver")

FOLDER = Path(__file__).parent
MIB = 2**20


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def lines(path):
    return [int(line) for line in path.read_text().split()] if path.exists() else []


class TestWorkers:
    """A worker that dies or hangs."""

    def test_killed_worker_fails_its_task_only(self, tmp_path, eventually):
        log = str(tmp_path / "log")

        with spawning_pool(2, name="crunch") as pool:
            killed = pool.submit(pool_tasks.kill_itself, log)
            others = [pool.submit(pool_tasks.append, log, number) for number in range(40)]
            error = killed.exception()
            assert isinstance(error, WorkerDied)
            assert isinstance(error, RuntimeError)
            assert "pool_tasks.kill_itself did not end: its worker process" in str(error)
            assert "of crunch was killed by SIGKILL" in str(error)
            assert (error.pool, error.task) == ("crunch", "pool_tasks.kill_itself")
            assert pickle.loads(pickle.dumps(error)).pid == error.pid
            assert [future.result() for future in others] == list(range(40))
            assert not Path(f"/proc/{error.pid}").exists()  # it was waited for

        assert Counter(lines(tmp_path / "log")) == Counter([*range(40), -1])
        assert pool.statistics().died == 1

    @pytest.mark.parametrize(
        ("task", "arguments", "reason"),
        [
            (pool_tasks.leave_with_status, (3,), "exited with status 3"),
            (pool_tasks.close_descriptors, (), r"exited with status 0|killed by SIGKILL"),
            (signal.raise_signal, (signal.SIGTERM,), "killed by SIGTERM"),
        ],
        ids=["exit", "closed", "terminated"],
    )
    def test_worker_that_ends_otherwise_says_how(self, task, arguments, reason):
        with process_pool_scope(1) as pool:
            error = pool.submit(task, *arguments).exception()
            assert isinstance(error, WorkerDied)
            assert re.search(reason, error.reason)
            assert pool.submit(abs, -1).result() == 1

    def test_worker_that_ignores_sigterm_is_killed(self, tmp_path, eventually):
        log = tmp_path / "log"

        started = time.monotonic()
        with pytest.raises(KeyError), process_pool_scope(1, grace=0.2, name="stubborn") as pool:  # noqa: PT012
            running = pool.submit(pool_tasks.block_forever, str(log), ignore_sigterm=True)
            waiting = pool.submit(abs, 1)
            eventually(lambda: lines(log))
            raise KeyError
        assert time.monotonic() - started < 60
        assert waiting.cancelled()
        with pytest.raises(ScopeClosed, match=r"ended while pool_tasks\.block_forever ran"):
            running.result()
        assert not Path(f"/proc/{lines(log)[0]}").exists()

    def test_worker_stopped_by_a_signal_is_killed_at_the_end(self, tmp_path, eventually):
        log = tmp_path / "log"

        with pytest.raises(KeyError), process_pool_scope(1, grace=0.1) as pool:  # noqa: PT012
            pool.submit(pool_tasks.block_forever, str(log))
            eventually(lambda: lines(log))
            os.kill(lines(log)[0], signal.SIGSTOP)
            raise KeyError
        assert not Path(f"/proc/{lines(log)[0]}").exists()

    def test_result_of_100_mb_arrives_whole(self):
        with process_pool_scope(1) as pool:
            answer = pool.submit(pool_tasks.zeros, 100_000_000)
            assert len(answer.result()) == 100_000_000
            argument = b"x" * 5_000_001
            assert pool.submit(len, argument).result() == 5_000_001

    def test_idle_worker_that_was_killed_is_replaced(self, eventually):
        with process_pool_scope(1) as pool:
            pid = pool.submit(pool_tasks.process_id).result()
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not pool.statistics().workers)
            assert pool.submit(pool_tasks.process_id).result() != pid

        assert pool.statistics().failed == 0

    def test_sigint_in_a_worker_interrupts_no_task(self, tmp_path):
        with process_pool_scope(1) as pool:
            pid = pool.submit(pool_tasks.process_id).result()
            answer = pool.submit(time.sleep, 0.3)
            time.sleep(0.1)
            os.kill(pid, signal.SIGINT)
            assert answer.result() is None
            assert pool.submit(pool_tasks.process_id).result() == pid

    def test_death_is_noticed_behind_a_forked_child(self):
        with process_pool_scope(1) as pool:
            error = pool.submit(pool_tasks.leave_a_child_and_die, 5.0).exception(timeout=60)
        assert isinstance(error, WorkerDied)


class TestStart:
    """Workers that cannot be started."""

    def test_three_failures_fail_the_task_with_its_name(self):
        with process_pool_scope(2, initializer=pool_tasks.initialize_badly, name="licensed") as pool:
            error = pool.submit(pool_tasks.double, 1).exception()
            assert isinstance(error, WorkerStartFailed)
            assert (error.task, error.attempts) == ("pool_tasks.double", 3)
            assert "pool_tasks.double was not run: 3 workers of licensed in a row" in str(error)
            assert "no licence" in error.reason
            assert isinstance(pool.submit(abs, 1).exception(), WorkerStartFailed)
            assert pool.statistics().start_failures == 4
            time.sleep(0.2)
            assert pool.statistics().start_failures == 4  # nothing is started that no task needs

    def test_pool_goes_on_when_workers_start_again(self, tmp_path):
        with process_pool_scope(1, initializer=pool_tasks.fail_until, initargs=(str(tmp_path), 4)) as pool:
            assert isinstance(pool.submit(abs, -1).exception(), WorkerStartFailed)
            assert isinstance(pool.submit(abs, -2).exception(), WorkerStartFailed)
            assert pool.submit(abs, -3).result() == 3

    def test_worker_that_is_never_ready_fails_to_start(self):
        with process_pool_scope(1, initializer=time.sleep, initargs=(600,), start_timeout=0.3, grace=0.1) as pool:
            error = pool.submit(abs, 1).exception()
        assert isinstance(error, WorkerStartFailed)
        assert "not ready after 0.3 s" in str(error)

    def test_initializer_that_cannot_be_pickled_fails_tasks(self):
        with spawning_pool(1, initializer=lambda: None) as pool:
            errors = [pool.submit(abs, number).exception() for number in range(3)]
        assert all(isinstance(error, WorkerStartFailed) for error in errors)
        assert "pickle" in str(errors[0])


@pytest.fixture(scope="module")
def shared_pool():
    with process_pool_scope(1) as pool:
        pool.submit(abs, 1).result()
        yield pool


class TestPickling:
    """What cannot be sent fails the task that it belongs to."""

    @pytest.mark.parametrize(
        ("task", "arguments", "text"),
        [
            (lambda: None, (), "pickle"),
            (abs, (lambda: None,), "pickle"),
            (pool_tasks.local_function, (), "local object"),
            (pool_tasks.raise_unpicklable, (), "the task raised Unpicklable, which cannot be pickled"),
            (pool_tasks.raise_needs_two, (), "second"),
            (pool_tasks.return_what_fails, (), "not made"),
            (pool_tasks.exit_the_interpreter, (), "done"),
            (pool_tasks.raise_what_becomes_text, (), "was unpickled as str"),
        ],
        ids=["function", "argument", "result", "exception", "unpicklable", "arrival", "exit", "no-exception"],
    )
    def test_task_fails_and_the_worker_goes_on(self, task, arguments, text, shared_pool):
        pid = shared_pool.submit(pool_tasks.process_id).result()

        error = shared_pool.submit(task, *arguments).exception()

        assert text in str(error)
        assert shared_pool.submit(pool_tasks.process_id).result() == pid

    def test_result_over_the_budget_of_its_owner_fails_its_task(self, shared_pool):
        is_told = False
        try:
            with memory_scope("report", budget="2 MiB", meter="native"):
                future = shared_pool.submit(pool_tasks.return_what_swells)
                while not future.done():
                    time.sleep(0.01)
        except BudgetExceeded:
            is_told = True

        # Which of the two is stopped depends on which of them executes Python when the budget is used up.
        assert is_told or type(future.exception()).__name__ in ("BudgetExceeded", "BudgetStop")
        future.exception(timeout=30)
        assert shared_pool.submit(abs, -1).result() == 1  # the pool's own thread was not stopped

    def test_result_is_charged_to_the_submitter(self, shared_pool):
        with memory_scope("report", meter="native") as report:
            kept = shared_pool.submit(pool_tasks.zeros, 5_000_000).result()
            assert report.usage.retained_bytes >= 5_000_000
        assert len(kept) == 5_000_000


class TestRecycling:
    """Workers that have grown are replaced between two tasks."""

    @pytest.mark.parametrize("start", ["spawn", "forkserver"])
    def test_no_task_is_lost_or_run_twice_and_growth_is_bounded(self, tmp_path, start):
        log = tmp_path / "log"
        with process_pool_scope(2, recycle_above="8 MiB", start=start, name="leaky") as pool:
            futures = [pool.submit(pool_tasks.leak, 1, str(log), number) for number in range(90)]
            answers = [future.result() for future in futures]
            assert len(pool.statistics().workers) <= 3

        assert sorted(lines(log)) == list(range(90))
        # A task begins at twice the growth at most, plus the first task, which is what growth is measured from.
        assert max(before for _, before in answers) <= 2 * 8 + 1
        assert len({pid for pid, _ in answers}) >= 90 // 18
        assert pool.statistics().recycled >= 3

    def test_worker_that_does_not_grow_is_kept(self):
        with process_pool_scope(1, recycle_above="8 MiB") as pool:
            pids = {pool.submit(pool_tasks.process_id).result() for _ in range(30)}
            worker = pool.statistics().workers[0]
        assert len(pids) == 1
        assert worker.growth_bytes < 4 * MIB
        assert (worker.tasks, worker.retire_reason, pool.statistics().recycled) == (30, "", 0)

    def test_young_worker_is_kept_up_to_half_as_much_again(self):
        with process_pool_scope(1, recycle_above="20 MiB", min_life=600) as pool:
            pids = {pool.submit(pool_tasks.leak, 4).result()[0] for _ in range(7)}
        assert len(pids) == 1  # it has grown by 24 MiB

    def test_replacement_is_ready_before_the_old_one_ends(self, eventually):
        with process_pool_scope(1, recycle_above="8 MiB", min_life=0) as pool:
            old = {pool.submit(pool_tasks.leak, 5).result()[0] for _ in range(3)}
            eventually(lambda: pool.statistics().recycled == 1 and len(pool.statistics().workers) == 1)
            worker = pool.statistics().workers[0]
            assert (worker.state, worker.tasks) == ("idle", 0)
            assert pool.submit(pool_tasks.process_id).result() == worker.pid
        assert worker.pid not in old

    def test_worker_does_at_most_max_tasks(self):
        with process_pool_scope(2, max_tasks=4, recycle_above=None) as pool:
            counts = Counter(pool.map(pool_tasks.process_id, range(18)))
        assert max(counts.values()) <= 4
        assert pool.statistics().finished == 18

    def test_killed_workers_among_recycled_ones_lose_one_task_each(self, tmp_path):
        log = tmp_path / "log"
        with process_pool_scope(2, recycle_above="8 MiB") as pool:
            futures = []
            for number in range(40):
                futures.append(pool.submit(pool_tasks.leak, 1, str(log), number))
                if number % 13 == 5:
                    futures.append(pool.submit(pool_tasks.kill_itself))
            outcomes = Counter(type(future.exception()).__name__ for future in futures)
        assert outcomes == {"NoneType": 40, "WorkerDied": 3}
        assert sorted(lines(log)) == list(range(40))

    def test_recycle_ends_idle_workers_that_have_worked(self, eventually):
        with process_pool_scope(2) as pool:
            pid = pool.submit(pool_tasks.process_id).result()
            pool.recycle()
            eventually(lambda: not pool.statistics().workers)
            assert pool.submit(pool_tasks.process_id).result() != pid


class TestMemory:
    """What the statistics tell of the workers' memory."""

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
    def test_memory_of_workers_is_their_proportional_share(self, eventually):
        with process_pool_scope(1) as pool:
            pool.submit(pool_tasks.leak, 30).result()
            eventually(lambda: (pool.submit(abs, 1).result(), pool.statistics().private_bytes > 30 * MIB)[1])
            found = pool.statistics()
            worker = found.workers[0]
            assert found.private_bytes <= found.pss_bytes < 30 * MIB + 200 * MIB
            assert worker.private_bytes == found.private_bytes
            assert found.to_dict()["workers"][0]["pid"] == worker.pid

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
    @pytest.mark.once
    def test_forked_workers_do_not_count_what_they_share(self):
        program = (
            f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n"
            "import pool_tasks, time\n"
            "from memtools.pools import process_pool_scope\n"
            "from memtools.readings import resident_bytes\n"
            "kept = b'x' * 200_000_000\n"
            "with process_pool_scope(3, start='fork') as pool:\n"
            "    list(pool.map(time.sleep, [0.1] * 6))\n"
            "    time.sleep(1.1)\n"
            "    list(pool.map(abs, range(6)))\n"
            "    found = pool.statistics()\n"
            "    assert len(found.workers) == 3, found\n"
            "    print(resident_bytes(), found.pss_bytes, found.private_bytes)\n"
        )
        resident, pss, private = map(int, run_program(program).split())
        assert resident > 200_000_000
        assert private <= pss < 200_000_000

    def test_share_of_this_process_is_not_above_its_resident_memory(self):
        share = memory_share(os.getpid())
        if sys.platform == "linux":
            assert 0 < share.private_bytes <= share.pss_bytes <= resident_bytes() + 50 * MIB
        assert memory_share(2**22 + 1) == UNKNOWN or sys.platform != "linux"

    @pytest.mark.parametrize(
        ("text", "pss", "private"),
        [
            (b"0-1 ---p 0 0 [rollup]\nPss: 12 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 2 kB\n", 12 << 10, 3 << 10),
            (b"Pss: 1 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 2 kB\nPrivate_Hugetlb: 2048 kB\n", 1 << 10, 2051 << 10),
            (b"Pss: 12 kB\nPrivate_Dirty: 2 kB\n", 12 << 10, None),
            (b"", None, None),
            (b"Pss: many kB\n\xff\n", None, None),
        ],
    )
    def test_rollup_is_parsed_by_name(self, text, pss, private):
        assert parse_rollup(text) == (pss, private)


def run_program(program, *, timeout=60, check=True):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done.stderr


# The worker that is busy has written its process before it blocks; the other one is idle.
BUSY_AND_IDLE = """
import sys, time
sys.path.insert(0, {folder!r})
import pool_tasks
from memtools.pools import process_pool_scope
if __name__ == "__main__":
    with process_pool_scope(2, grace=0.3, start={start!r}) as pool:
        list(pool.map(time.sleep, [0.05] * 6))
        busy = pool.submit(pool_tasks.block_forever, {log!r})
        while not any(worker.task for worker in pool.statistics().workers):
            time.sleep(0.01)
        print(*[worker.pid for worker in pool.statistics().workers], flush=True)
        busy.result()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
class TestEndOfTheProgram:
    """Workers end with the process that made the pool, whatever ends it."""

    @pytest.mark.parametrize("start", ["spawn", "forkserver", "fork"])
    def test_workers_end_when_their_parent_is_killed(self, start, tmp_path, eventually):
        with started(start, tmp_path) as (program, pids):
            program.kill()
            program.wait()
            eventually(lambda: not any(is_running(pid) for pid in pids))

    def test_workers_end_by_ctrl_c(self, tmp_path, eventually):
        with started("spawn", tmp_path) as (program, pids):
            for pid in (*pids, program.pid):  # as a terminal does
                os.kill(pid, signal.SIGINT)
            assert "KeyboardInterrupt" in program.communicate(timeout=30)[1]
            assert not any(is_running(pid) for pid in pids)

    def test_program_ends_that_never_ended_its_pool(self):
        program = (
            "import time\n"
            "from memtools.pools import process_pool_scope\n"
            "pool = process_pool_scope(1, grace=0.2, name='forgotten')\n"
            "print(pool.submit(abs, -1).result())\n"
            "pool.submit(time.sleep, 600)\n"
            "time.sleep(0.2)\n"
            "import warnings; warnings.simplefilter('always')\n"
        )
        assert "forgotten was never shut down" in run_program(program, check=False)

    @pytest.mark.once
    def test_program_waits_for_a_pool_that_was_shut_down(self):
        program = (
            "from memtools.pools import process_pool_scope\n"
            "pool = process_pool_scope(1)\n"
            "future = pool.submit(abs, -1)\n"
            "future.add_done_callback(lambda done: print(done.result(), flush=True))\n"
            "pool.shutdown(wait=False)\n"
        )
        assert run_program(program) == "1\n"

    @pytest.mark.once
    def test_pool_of_an_unguarded_main_module_starts_no_workers(self, tmp_path):
        path = tmp_path / "unguarded.py"
        path.write_text(
            "from memtools.pools import process_pool_scope\n"
            "with process_pool_scope(1) as pool:\n"
            "    error = pool.submit(abs, -1).exception()\n"
            "print(type(error).__name__)\n"
        )
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60, check=False)
        # The worker executes the module as well, and must not start workers of its own.
        assert done.stdout.split() == ["WorkerStartFailed", "NoneType"]


class started:  # noqa: N801
    """A program with a busy and an idle worker."""

    def __init__(self, start, folder):
        program = BUSY_AND_IDLE.format(folder=str(FOLDER), start=start, log=str(folder / "log"))
        self.path = folder / "program.py"
        self.path.write_text(program)

    def __enter__(self):
        self.program = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", self.path],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        pids = [int(pid) for pid in self.program.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
        return self.program, pids

    def __exit__(self, *error):
        self.program.kill()
        self.program.communicate()
        gc.collect()


class TestStartMethods:
    """The methods of multiprocessing."""

    @pytest.mark.once
    def test_forkserver_runs_tasks_and_recycles(self):
        program = (
            f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n"
            "import pool_tasks\n"
            "from memtools.pools import process_pool_scope\n"
            "with process_pool_scope(2, start='forkserver', recycle_above='4 MiB') as pool:\n"
            "    answers = list(pool.map(pool_tasks.leak, [1] * 30))\n"
            "print(len({pid for pid, _ in answers}) > 2, max(before for _, before in answers) <= 9)\n"
        )
        assert run_program(program).split() == ["True", "True"]

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("start", "thread"),
            ("recycle_above", "50 MB/s"),
            ("recycle_above", 1000),
            ("max_tasks", 0),
            ("min_life", -1),
            ("start_timeout", 0),
            ("initializer", 3),
        ],
    )
    def test_invalid_argument_is_named(self, argument, value):
        with pytest.raises(ConfigError, match=f"{argument}="):
            process_pool_scope(**{argument: value})


@pytest.mark.once
def test_example_bounds_leaks_and_names_the_killed_task():
    path = FOLDER.parent.parent / "docs" / "examples" / "leaking_workers.py"
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert "parse did not end: its worker process" in done.stdout
    assert "149 finished, 1 failed (1 with their worker)" in done.stdout
