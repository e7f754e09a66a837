"""Every marked test has a leaking twin that fails, with the culprit's name, and a fixed one that passes."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from memtools.errors import ConfigError
from memtools.testing._plugin import parse_options

Suite = Callable[..., Any]

TWINS = """
import asyncio, ctypes, os, threading
import pytest

kept = []

@pytest.fixture
def connection():
    kept.append(bytes(5_000))
    yield kept[-1]

@pytest.fixture
def closed_connection():
    kept.append(bytes(5_000))
    yield kept[-1]
    kept.pop()

@pytest.mark.memory_growth(max_bytes="100 B")
def test_leaking_200_bytes():
    kept.append(bytes(200))

@pytest.mark.memory_growth(max_bytes="100 B")
def test_fixed_200_bytes():
    assert len([bytes(200)]) == 1

@pytest.mark.memory_growth
def test_leaking_64_kib():
    kept.append(bytes(65_536))

@pytest.mark.memory_growth
def test_fixed_64_kib():
    bytes(65_536)

@pytest.mark.memory_growth
def test_leaking_fixture(connection):
    assert connection

@pytest.mark.memory_growth
def test_fixed_fixture(closed_connection):
    assert closed_connection

@pytest.mark.memory_growth
def test_leaking_descriptor():
    os.open(os.devnull, os.O_RDONLY)

@pytest.mark.memory_growth
def test_fixed_descriptor():
    os.close(os.open(os.devnull, os.O_RDONLY))

@pytest.mark.memory_growth
def test_fixed_with_output():
    print("x" * 10_000)

@pytest.mark.memory_growth
def test_fixed_asyncio_run():
    asyncio.run(asyncio.sleep(0))
"""


def test_every_leaking_twin_fails_by_name_and_every_fixed_one_passes(run_suite: Suite) -> None:
    result = run_suite(TWINS)

    wrong = {name: outcome for name, outcome in result.outcomes.items() if (outcome == "FAILED") != ("leaking" in name)}
    assert len(result.outcomes) == 10, result.text
    assert wrong == {}, result.text
    assert "test_suite.kept" in result.text
    assert f"descriptor {'/dev/null' if sys.platform == 'linux' else ''}" in result.text
    assert result.figures["test_fixed_64_kib"]["runs"] == 5
    assert result.figures["test_leaking_64_kib"]["answer"] == "leak"


def test_a_body_that_has_too_much_alive_at_once_fails(run_suite: Suite) -> None:
    result = run_suite(
        """
        import pytest

        @pytest.mark.memory_peak(max_bytes="1 MiB")
        def test_high():
            assert bytes(3_000_000)

        @pytest.mark.memory_peak("4 MiB")
        def test_low():
            assert bytes(3_000_000)
        """
    )

    assert result.outcomes == {"test_high": "FAILED", "test_low": "PASSED"}, result.text
    assert "had 2.9 MiB alive at once, limit 1.0 MiB" in result.text
    assert 3_000_000 < result.figures["test_low"]["peak_bytes"] < 3_200_000


ASYNC = """
import asyncio
import pytest

kept = []
{mark}

@pytest.mark.memory_growth(max_bytes="1 KiB")
async def test_leaking():
    await asyncio.sleep(0)
    kept.append(bytes(5_000))

@pytest.mark.memory_growth(max_bytes="1 KiB")
async def test_fixed():
    await asyncio.sleep(0)
    bytes(5_000)

@pytest.mark.memory_peak(max_bytes="1 MiB")
async def test_leaking_peak():
    await asyncio.sleep(0)
    rows = bytes(2_000_000)
    await asyncio.sleep(0)

@pytest.mark.no_leaked_tasks
async def test_leaking_task():
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="price feed"))
    await asyncio.sleep(0)

@pytest.mark.no_leaked_tasks
async def test_fixed_task():
    await asyncio.create_task(asyncio.sleep(0))
"""


@pytest.mark.parametrize(
    ("mark", "ini"),
    [
        ("", "asyncio_mode = auto"),
        ("pytestmark = pytest.mark.asyncio", "asyncio_mode = strict"),
        ("pytestmark = pytest.mark.anyio\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'", ""),
    ],
    ids=["pytest-asyncio auto", "pytest-asyncio strict", "anyio"],
)
def test_coroutine_tests_are_measured_whoever_runs_them(run_suite: Suite, mark: str, ini: str) -> None:
    if "anyio" in mark:
        pytest.importorskip("anyio", reason="anyio is not installed")

    result = run_suite(ASYNC.format(mark=mark), ini=ini)

    wrong = {name: outcome for name, outcome in result.outcomes.items() if (outcome == "FAILED") != ("leaking" in name)}
    assert len(result.outcomes) == 5, result.text
    assert wrong == {}, result.text
    assert "task 'price feed': it waits in Event.wait" in result.text


def test_threads_and_descriptors_are_leftovers_too(run_suite: Suite) -> None:
    result = run_suite(
        """
        import os, threading
        import pytest

        release = threading.Event()

        @pytest.mark.no_leaked_tasks
        def test_leaking_thread():
            threading.Thread(target=release.wait, name="importer", daemon=True).start()

        @pytest.mark.no_leaked_tasks
        def test_leaking_descriptor():
            os.open(os.devnull, os.O_RDONLY)

        @pytest.mark.no_leaked_tasks
        def test_fixed():
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
        """
    )

    assert result.outcomes["test_leaking_thread"] == "FAILED"
    assert result.outcomes["test_fixed"] == "PASSED"
    assert "thread 'importer'" in result.text
    if sys.platform == "linux":
        assert "descriptor /dev/null" in result.text


def test_a_run_that_fails_is_reported_as_pytest_reports_it(run_suite: Suite) -> None:
    result = run_suite(
        """
        import pytest

        runs = []

        @pytest.mark.memory_growth
        def test_fails_at_the_third_run():
            runs.append(1)
            assert len(runs) < 3

        @pytest.mark.memory_growth
        @pytest.mark.xfail(strict=True)
        def test_expected_failure():
            raise LookupError

        @pytest.mark.memory_growth
        def test_skipped():
            pytest.skip("not here")
        """
    )

    assert "1 failed, 1 skipped, 1 xfailed" in result.text, result.text
    assert "assert 3 < 3" in result.text


def test_fixtures_of_modules_and_the_session_live_through_the_runs(run_suite: Suite) -> None:
    result = run_suite(
        """
        import pytest

        made = []

        @pytest.fixture(scope="module")
        def server():
            made.append("module")
            yield
            made.append("module ended")

        @pytest.fixture
        def client(server):
            made.append("function")
            yield
            made.pop()

        @pytest.mark.memory_growth
        @pytest.mark.parametrize("number", [1, 2])
        def test_uses_both(client, number):
            assert made == ["module", "function"]

        def test_afterwards(server):
            assert made == ["module"]
        """
    )

    assert result.code == 0, result.text


def test_what_is_wished_for_the_whole_suite_holds_for_every_test(run_suite: Suite) -> None:
    result = run_suite(
        """
        import unittest

        kept = []

        def test_leaking():
            kept.append(bytes(5_000))

        def test_fixed():
            bytes(5_000)

        class TestOld(unittest.TestCase):
            def test_method(self):
                kept.append(bytes(5_000))
        """,
        ini="""
        memtools_growth_max_bytes = 1 KiB
        memtools_repeats = 4
        memtools_warmup = 1
        """,
    )

    assert result.outcomes == {"test_leaking": "FAILED", "test_fixed": "PASSED", "test_method": "PASSED"}, result.text
    assert result.figures["test_fixed"]["runs"] == 4


@pytest.mark.parametrize(
    ("marker", "args", "kwargs", "reason"),
    [
        ("memory_growth", (), {"limit": "1 Mb"}, "limit='1 Mb' is not accepted"),
        ("memory_growth", (), {"rounds": 3}, "memory_growth='rounds' is not accepted: use limit, repeats, warmup"),
        ("memory_growth", (), {"repeats": 1}, "repeats=1 is not accepted"),
        ("memory_growth", (), {"warmup": -1}, "warmup=-1 is not accepted"),
        ("memory_peak", (), {}, r"memory_peak\(limit=...\)"),
        ("memory_peak", ("1 MiB", "2 MiB"), {}, "2 MiB"),
        ("no_leaked_tasks", (), {"limit": 1}, "limit"),
    ],
)
def test_a_marker_that_makes_no_sense_is_refused(
    marker: str, args: tuple[object, ...], kwargs: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_options({marker: (args, kwargs)}, {}, "tracemalloc")


def test_settings_that_make_no_sense_are_refused_by_their_names() -> None:
    with pytest.raises(ConfigError, match="memtools_repeats='many'"):
        parse_options({}, {"memtools_growth_max_bytes": "1 KiB", "memtools_repeats": "many"}, "tracemalloc")


def test_what_is_refused_is_refused_at_collection(run_suite: Suite) -> None:
    result = run_suite(
        """
        import pytest

        @pytest.mark.memory_growth(max_bytes="1 Mb")
        def test_something(): ...
        """
    )

    assert result.code == 4, result.text
    assert "test_suite.py::test_something: limit='1 Mb' is not accepted" in result.text


def test_a_marker_on_a_test_case_method_is_refused_at_collection(run_suite: Suite) -> None:
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
    assert "cannot be kept on a unittest.TestCase method" in result.text


def test_a_run_without_markers_loads_nothing_of_ours(run_suite: Suite) -> None:
    result = run_suite(
        """
        import sys

        def test_nothing_is_loaded():
            assert not {"memtools", "psutil", "wrapt"} & set(sys.modules)
        """
    )

    assert result.code == 0, result.text
    assert "memory" not in result.text.split("short test summary")[0].split("=== PASSES")[-1]
