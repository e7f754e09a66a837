"""Check that a test is blamed for what it leaves, and not for what pytest, a plugin or the process keeps."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Suite = Callable[..., Any]

SUITES = Path(__file__).with_name("suites")
AUTO = "asyncio_mode = auto"
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are listed on Linux only")

has_subtests = hasattr(pytest, "Subtests") or importlib.util.find_spec("pytest_subtests") is not None


class TestLeftovers:
    """Tasks, threads and descriptors."""

    def test_what_the_process_keeps_is_not_the_tests(self, run_suite: Suite) -> None:
        result = run_suite(SUITES / "not_of_the_test.py", ini=AUTO, own_process=True)

        assert {name for name, outcome in result.outcomes.items() if outcome != "PASSED"} == set(), result.text
        assert len(result.outcomes) >= 24, result.text

    @ON_LINUX
    def test_things_of_the_test_are_found_and_named(self, run_suite: Suite) -> None:
        result = run_suite(SUITES / "of_the_test.py", ini=AUTO, own_process=True)

        assert [name for name, outcome in result.outcomes.items() if outcome == "PASSED"] == ["test_release"]
        assert "thread 'ThreadPoolExecutor-0_0'" in result.text
        assert "thread 'in a global_0'" in result.text
        assert "descriptor anon_inode:[eventpoll]" in result.text
        assert "own.log" in result.text
        waiting = next(line for line in result.text.splitlines() if line.lstrip().startswith("task 'feed'"))
        assert "it waits in Client.run, line " in waiting
        assert "; created in connect, test_suite.py:" in waiting
        assert "it closes the generator test_generator_that_never_closes.<locals>.numbers" in result.text

    @pytest.mark.once
    @pytest.mark.parametrize("number", range(3))
    def test_each_test_may_be_the_first_of_a_worker(self, run_suite: Suite, number: int) -> None:
        result = run_suite(
            """
            import pytest

            @pytest.mark.parametrize("number", range(3))
            def test_nothing(number):
                pass
            """,
            "-k",
            f"[{number}]",
            ini="memtools_no_leaked_tasks = true",
            own_process=True,
        )

        assert result.code == 0, result.text

    def test_origins_are_recorded_only_during_the_body(self, run_suite: Suite) -> None:
        result = run_suite(
            """
            import sys
            import pytest

            @pytest.fixture
            def depth():
                yield
                assert sys.get_coroutine_origin_tracking_depth() == 0

            @pytest.mark.no_leaked_tasks
            def test_recorded(depth):
                assert sys.get_coroutine_origin_tracking_depth() > 0

            @pytest.mark.no_leaked_tasks
            @pytest.mark.memory_peak("1 MiB")
            def test_not_recorded_where_the_peak_is_limited():
                assert sys.get_coroutine_origin_tracking_depth() == 0

            @pytest.mark.no_leaked_tasks
            @pytest.mark.xfail(raises=LookupError, strict=True)
            def test_recorded_and_failing(depth):
                raise LookupError
            """
        )

        assert result.code == 0, result.text

    @pytest.mark.once
    def test_hypothesis_test_looks_inside_its_loop(self, run_suite: Suite) -> None:
        result = run_suite(
            """
            import asyncio
            import pytest
            from hypothesis import given, settings, strategies

            @pytest.mark.no_leaked_tasks
            @settings(max_examples=3, database=None, deadline=None)
            @given(strategies.integers())
            async def test_abandoned_generator(number):
                async def numbers():
                    try:
                        yield number
                    finally:
                        await asyncio.sleep(0)

                async for _ in numbers():
                    break
            """,
            ini=AUTO,
            own_process=True,
        )

        assert result.code == 0, result.text


@pytest.mark.once
class TestGrowth:
    """What pytest and its plugins keep of each run, and what they are told."""

    def test_reruns_measure_each_attempt(self, run_suite: Suite) -> None:
        pytest.importorskip("pytest_rerunfailures")
        result = run_suite(SUITES / "reruns.py", own_process=True)

        assert "1 failed, 3 passed, 5 rerun" in result.text, result.text
        assert result.outcomes["test_leak"] == "FAILED"
        assert result.figures["test_growth"]["answer"] == "clean"

    @pytest.mark.skipif(not has_subtests, reason="neither pytest 9 nor pytest-subtests is installed")
    def test_subtests_are_reported_once(self, run_suite: Suite) -> None:
        result = run_suite(SUITES / "subtests_of_a_test.py", "-v", own_process=True)

        assert result.outcomes["test_clean"] == "PASSED", result.text
        assert "5 subtests passed" in result.text
        assert "2 failed, 1 passed" in result.text
        assert result.outcomes["test_fails_in_the_third_run"] == "FAILED"

    @pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
    def test_failure_of_a_run_is_reported_in_its_phase(self, run_suite: Suite, phase: str) -> None:
        result = run_suite(
            f"""
            import pytest

            runs = []

            def fail_in(phase):
                assert (len(runs), phase) != (3, {phase!r}), f"wrong in {{phase}}"

            @pytest.fixture
            def given():
                runs.append(1)
                fail_in("setup")
                yield
                fail_in("teardown")

            @pytest.mark.memory_growth
            def test_something(given):
                fail_in("call")
            """
        )

        failures = result.text.split("short test summary")[0]
        assert failures.count(f"AssertionError: wrong in {phase}\n") == 1, result.text
        assert ("1 failed" if phase == "call" else "1 error") in result.text
        assert "pytest_memtools.py" not in failures

    def test_what_pytest_keeps_of_each_run_does_not_count(self, run_suite: Suite) -> None:
        result = run_suite(
            """
            import asyncio
            import logging
            import warnings
            import pytest

            @pytest.fixture(scope="module")
            def wide():
                return bytes(10)

            @pytest.fixture
            def narrow(wide):
                yield bytes(wide)

            @pytest.mark.memory_growth(max_bytes="500 B")
            def test_fixtures(narrow, monkeypatch, caplog):
                logging.getLogger("kept").warning("%s", narrow)
                print("x" * 1_000)

            @pytest.mark.memory_growth(max_bytes="500 B")
            def test_warnings():
                for number in range(10):
                    warnings.warn(f"number {number} is deprecated", DeprecationWarning)

            @pytest.mark.memory_growth(max_bytes="500 B")
            async def test_coroutine():
                await asyncio.sleep(0)

            class TestClass:
                @pytest.mark.memory_growth(max_bytes="500 B")
                def test_method(self):
                    assert not hasattr(self, "kept")
                    self.kept = bytes(5_000)
            """,
            ini=AUTO,
            own_process=True,
        )

        assert "4 passed, 10 warnings" in result.text, result.text

    def test_summary_tells_growth_under_the_limit(self, run_suite: Suite) -> None:
        result = run_suite(
            """
            import pytest

            kept = []

            @pytest.mark.memory_growth
            def test_keeps_a_little():
                kept.append(bytes(500))
            """,
            own_process=True,
        )

        assert result.code == 0, result.text
        assert "B, under 1 KiB a run" in result.text
        assert "clean" not in result.text
        assert result.figures["test_keeps_a_little"]["max_bytes"] == 1024

    def test_leak_can_be_expected(self, run_suite: Suite) -> None:
        result = run_suite(
            """
            import pytest

            kept = []

            @pytest.mark.xfail(reason="known", strict=True)
            @pytest.mark.memory_growth
            def test_leaking():
                kept.append(bytes(5_000))
            """,
            own_process=True,
        )

        assert "1 xfailed" in result.text, result.text
        assert result.figures["test_leaking"]["answer"] == "leak"

    def test_fixtures_only_runs_nothing_repeatedly(self, run_suite: Suite) -> None:
        result = run_suite(
            """
            import pytest

            @pytest.fixture
            def given():
                yield

            @pytest.mark.memory_growth
            def test_something(given):
                raise LookupError
            """,
            "--setup-only",
        )

        assert result.code == 0, result.text
        assert result.text.count("SETUP    F given") == 1


class TestCollectedObjects:
    """`assert_collected` where pytest holds the objects."""

    @pytest.mark.once
    def test_objects_that_pytest_holds_are_not_blamed(self, run_suite: Suite) -> None:
        result = run_suite(SUITES / "held_by_pytest.py", own_process=True)  # pytest holds log records of its own tests

        assert result.outcomes["test_failing"] == "FAILED", result.text
        assert "what is really wrong" in result.text
        for name in ("test_value_of_a_fixture", "test_logged_with_a_traceback", "test_expected_exception"):
            assert result.outcomes[name] == "PASSED", result.text
        assert "3 failed, 4 passed, 1 skipped, 1 xfailed, 1 error" in result.text
        assert "leaks" not in result.text

    def test_object_that_pytest_keeps_is_refused(self, run_suite: Suite) -> None:
        result = run_suite(SUITES / "held_by_pytest.py", "-k", "module or parameter")

        assert "pytest keeps what fixture 'shared' returns until the end of its module" in result.text
        assert "pytest keeps the parameter 'given' for the whole session" in result.text
        assert "2 failed" in result.text

    def test_uncollected_object_fails_a_measured_test(self, run_suite: Suite) -> None:
        result = run_suite(
            """
            import pytest

            class Service: ...

            kept = []

            @pytest.mark.memory_growth
            def test_kept(assert_collected):
                kept.append(assert_collected(Service()))
            """,
            own_process=True,
        )

        assert "1 passed, 1 error" in result.text, result.text
        assert "test_suite.Service (1 alive) <- list[0] <- test_suite.kept" in result.text

    @pytest.mark.once
    def test_object_that_a_thread_is_about_to_drop(self, run_suite: Suite) -> None:
        result = run_suite(
            """
            import threading

            class Service: ...

            def test_dropped_soon(assert_collected):
                service = assert_collected(Service())
                threading.Timer(0.1, id, (service,)).start()
            """,
            own_process=True,
        )

        assert result.code == 0, result.text
