"""Check the fixtures, the summary and the report file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Suite = Callable[..., Any]

SUITES = Path(__file__).with_name("suites")


def test_memory_profiler_reads_current_and_peak(run_suite: Suite) -> None:
    result = run_suite(SUITES / "profiler.py")

    assert result.code == 0, result.text
    assert "test_suite.py::test_profiled" in result.text
    assert "1.9 MiB" in result.text
    assert result.figures["test_profiled"]["peak_bytes"] > 2_000_000


@pytest.mark.once
def test_probed_parts_have_their_own_lines(run_suite: Suite) -> None:
    result = run_suite(
        SUITES / "probes.py",
        ini="asyncio_mode = auto",
    )

    assert result.code == 0, result.text
    assert [part["name"] for part in result.figures["test_parts"]["parts"]] == ["load", "index"]
    assert "\n  load " in result.text


def test_uncollected_object_fails_and_names_its_holder(run_suite: Suite) -> None:
    result = run_suite(SUITES / "collected.py")

    assert "test_kept" in result.text
    assert "1 error" in result.text, result.text
    assert "2 passed" in result.text
    assert "test_suite.registry" in result.text


def test_assert_collected_works_in_a_coroutine_test(run_suite: Suite) -> None:
    result = run_suite(
        SUITES / "collected_in_a_coroutine.py",
        ini="asyncio_mode = auto",
    )

    assert result.code == 0, result.text


@pytest.mark.once
def test_figures_of_xdist_workers_are_reported(run_suite: Suite) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    result = run_suite(SUITES / "workers.py", "-n", "2", own_process=True)

    assert len(result.figures) == 5, result.text
    assert result.outcomes["test_leaking"] == "FAILED"
    assert "test_suite.kept" in result.text


@pytest.mark.once
def test_markers_work_beside_pytest_memray(run_suite: Suite) -> None:
    pytest.importorskip("pytest_memray", reason="pytest-memray is not installed, or not made for this Python")
    result = run_suite(
        """
        import pytest

        @pytest.mark.memory_growth
        @pytest.mark.limit_memory("100 MB")
        def test_both(): ...
        """,
        "--memray",
        own_process=True,
    )

    assert result.code == 0, result.text
    assert result.figures["test_both"]["answer"] == "clean"
