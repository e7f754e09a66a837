"""Check the markers: a leaking test fails and its holder is named, and the same test without the leak passes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.testing._plugin import parse_options

Suite = Callable[..., Any]

SUITES = Path(__file__).with_name("suites")


def test_growth_fails_a_leaking_test_and_passes_a_fixed_one(run_suite: Suite) -> None:
    result = run_suite(SUITES / "growth.py", own_process=True)

    wrong = {name: outcome for name, outcome in result.outcomes.items() if (outcome == "FAILED") != ("leaking" in name)}
    assert len(result.outcomes) == 10, result.text
    assert wrong == {}, result.text
    assert "test_suite.kept" in result.text
    assert f"descriptor {'/dev/null' if sys.platform == 'linux' else ''}" in result.text
    assert result.figures["test_fixed_64_kib"]["runs"] == 5
    assert result.figures["test_leaking_64_kib"]["answer"] == "leak"


@pytest.mark.once
def test_peak_above_the_limit_fails(run_suite: Suite) -> None:
    result = run_suite(SUITES / "peak.py")

    assert result.outcomes == {"test_high": "FAILED", "test_low": "PASSED"}, result.text
    assert "had 2.9 MiB alive at once, max_bytes 1.0 MiB" in result.text
    assert 3_000_000 < result.figures["test_low"]["peak_bytes"] < 3_200_000


@pytest.mark.parametrize(
    ("mark", "ini"),
    [
        pytest.param("", "asyncio_mode = auto", id="pytest-asyncio auto", marks=pytest.mark.once),
        pytest.param("pytestmark = pytest.mark.asyncio", "asyncio_mode = strict", id="pytest-asyncio strict"),
        pytest.param(
            "pytestmark = pytest.mark.anyio\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'",
            "",
            id="anyio",
            marks=pytest.mark.once,
        ),
    ],
)
def test_coroutine_tests_are_measured_under_every_plugin(run_suite: Suite, mark: str, ini: str) -> None:
    if "anyio" in mark:
        pytest.importorskip("anyio", reason="anyio is not installed")

    result = run_suite((SUITES / "coroutines.py").read_text().replace("# MARK", mark), ini=ini, own_process=True)

    wrong = {name: outcome for name, outcome in result.outcomes.items() if (outcome == "FAILED") != ("leaking" in name)}
    assert len(result.outcomes) == 5, result.text
    assert wrong == {}, result.text
    assert "task 'price feed': it waits in Event.wait" in result.text


@pytest.mark.once
def test_threads_and_descriptors_left_behind_fail(run_suite: Suite) -> None:
    result = run_suite(SUITES / "threads_and_descriptors.py", own_process=True)

    assert result.outcomes["test_leaking_thread"] == "FAILED"
    assert result.outcomes["test_fixed"] == "PASSED"
    assert "thread 'importer'" in result.text
    if sys.platform == "linux":
        assert "descriptor /dev/null" in result.text


@pytest.mark.once
def test_failing_measured_test_is_reported_as_by_pytest(run_suite: Suite) -> None:
    result = run_suite(SUITES / "failures.py")

    assert "1 failed, 1 skipped, 1 xfailed" in result.text, result.text
    assert "assert 3 < 3" in result.text


@pytest.mark.once
def test_module_fixture_lives_through_all_runs(run_suite: Suite) -> None:
    result = run_suite(SUITES / "wide_fixtures.py", own_process=True)

    assert result.code == 0, result.text


@pytest.mark.once
def test_setting_for_the_suite_measures_every_test(run_suite: Suite) -> None:
    result = run_suite(
        SUITES / "whole_suite.py",
        own_process=True,
        ini="""
        memtools_growth_max_bytes = 1 KiB
        memtools_repeats = 4
        memtools_warmup = 1
        """,
    )

    assert result.outcomes == {"test_leaking": "FAILED", "test_fixed": "PASSED", "test_method": "PASSED"}, result.text
    assert result.figures["test_fixed"]["runs"] == 4


@pytest.mark.once
@pytest.mark.parametrize(
    ("marker", "args", "kwargs", "reason"),
    [
        ("memory_growth", (), {"max_bytes": "1 Mb"}, "max_bytes='1 Mb' is not accepted"),
        ("memory_growth", (), {"rounds": 3}, "memory_growth='rounds' is not accepted: use max_bytes, repeats, warmup"),
        ("memory_growth", (), {"repeats": 1}, "repeats=1 is not accepted"),
        ("memory_growth", (), {"warmup": -1}, "warmup=-1 is not accepted"),
        ("memory_peak", (), {}, r"memory_peak\(max_bytes=...\)"),
        ("memory_peak", ("1 MiB", "2 MiB"), {}, "2 MiB"),
        ("no_leaked_tasks", (), {"max_bytes": 1}, "max_bytes"),
    ],
)
def test_marker_with_wrong_arguments_is_refused(
    marker: str, args: tuple[object, ...], kwargs: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_options({marker: (args, kwargs)}, {}, "tracemalloc")


def test_setting_with_a_wrong_value_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="memtools_repeats='many'"):
        parse_options({}, {"memtools_growth_max_bytes": "1 KiB", "memtools_repeats": "many"}, "tracemalloc")


@pytest.mark.once
def test_wrong_marker_stops_the_run_at_collection(run_suite: Suite) -> None:
    result = run_suite(
        """
        import pytest

        @pytest.mark.memory_growth(max_bytes="1 Mb")
        def test_something(): ...
        """
    )

    assert result.code == 4, result.text
    assert "test_suite.py::test_something: max_bytes='1 Mb' is not accepted" in result.text


@pytest.mark.once
def test_marker_on_a_testcase_method_is_refused(run_suite: Suite) -> None:
    result = run_suite(
        """
        import unittest
        import pytest

        class TestOld(unittest.TestCase):
            @pytest.mark.memory_growth
            def test_method(self): ...
        """
    )

    assert result.code == 4
    assert "not supported on a unittest.TestCase method" in result.text


def test_suite_without_markers_loads_no_memtools(run_suite: Suite) -> None:
    result = run_suite(
        """
        import sys

        def test_nothing_is_loaded():
            assert not {"memtools", "psutil", "wrapt"} & set(sys.modules)
        """,
        own_process=True,
    )

    assert result.code == 0, result.text
    assert "memory" not in result.text.split("short test summary")[0].split("=== PASSES")[-1]
