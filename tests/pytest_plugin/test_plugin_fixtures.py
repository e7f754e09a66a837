"""The fixtures, the summary and the report file."""

from collections.abc import Callable
from typing import Any

import pytest

Suite = Callable[..., Any]


def test_the_profiler_knows_current_and_peak(run_suite: Suite) -> None:
    result = run_suite(
        """
        def test_profiled(memory_profiler):
            rows = bytes(2_000_000)
            assert 2_000_000 < memory_profiler.current_bytes < 2_200_000
            del rows
            assert memory_profiler.current_bytes < 200_000
            assert memory_profiler.peak_bytes > 2_000_000
            assert memory_profiler.usage.meter in ("native", "tracemalloc")
        """
    )

    assert result.code == 0, result.text
    assert "test_suite.py::test_profiled" in result.text
    assert "1.9 MiB" in result.text
    assert result.figures["test_profiled"]["peak_bytes"] > 2_000_000


def test_parts_of_a_test_have_lines_of_their_own(run_suite: Suite) -> None:
    result = run_suite(
        """
        import asyncio

        def test_parts(memory_probe):
            with memory_probe("load") as scope:
                rows = bytes(1_000_000)
            assert scope.usage.retained_bytes > 900_000
            with memory_probe("index"):
                pass

        async def test_parts_of_a_coroutine(memory_probe):
            async with memory_probe("fetch"):
                await asyncio.sleep(0)
        """,
        ini="asyncio_mode = auto",
    )

    assert result.code == 0, result.text
    assert [part["name"] for part in result.figures["test_parts"]["parts"]] == ["load", "index"]
    assert "\n  load " in result.text


def test_what_must_be_collected_and_is_not_names_its_keeper(run_suite: Suite) -> None:
    result = run_suite(
        """
        registry = []

        class Service: ...

        def test_kept(assert_collected):
            registry.append(assert_collected(Service()))

        def test_collected(assert_collected):
            service = assert_collected(Service())
            service.itself = service
        """
    )

    assert "test_kept" in result.text
    assert "1 error" in result.text, result.text
    assert "2 passed" in result.text
    assert "test_suite.registry" in result.text


def test_a_coroutine_test_may_expect_things_to_be_collected(run_suite: Suite) -> None:
    result = run_suite(
        """
        import asyncio

        class Service: ...

        async def test_collected(assert_collected):
            service = assert_collected(Service())
            await asyncio.sleep(0)
            assert service
        """,
        ini="asyncio_mode = auto",
    )

    assert result.code == 0, result.text


def test_figures_come_home_from_other_processes(run_suite: Suite) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    result = run_suite(
        """
        import pytest

        kept = []

        @pytest.mark.memory_growth
        @pytest.mark.parametrize("number", range(4))
        def test_fixed(number): ...

        @pytest.mark.memory_growth
        def test_leaking():
            kept.append(bytes(5_000))
        """,
        "-n", "2",
    )  # fmt: skip

    assert len(result.figures) == 5, result.text
    assert result.outcomes["test_leaking"] == "FAILED"
    assert "test_suite.kept" in result.text


def test_it_works_beside_pytest_memray(run_suite: Suite) -> None:
    pytest.importorskip("pytest_memray", reason="pytest-memray is not installed, or not made for this Python")
    result = run_suite(
        """
        import pytest

        @pytest.mark.memory_growth
        @pytest.mark.limit_memory("100 MB")
        def test_both(): ...
        """,
        "--memray",
    )

    assert result.code == 0, result.text
    assert result.figures["test_both"]["answer"] == "clean"
