"""Burst recordings end by themselves, can be read by memray, and do not disturb the ledger."""

import importlib
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from memtools import memory_scope
from memtools.errors import ConfigError, MissingExtraError
from memtools.ledger import native_reason

pytestmark = [
    pytest.mark.skipif(find_spec("memray") is None, reason="memray has no build for this system"),
    pytest.mark.leaves("descriptor", reason="memray keeps a pipe from its first recording to the end of the process"),
]


def _burst(path: Path, **options: Any) -> Any:
    from memtools.testing.memray import burst_recording

    return burst_recording(path, **options)


def _functions(path: Path) -> set[str]:
    import memray

    with memray.FileReader(path) as reader:
        records = list(reader.get_high_watermark_allocation_records(merge_threads=False))
        return {frame[0] for record in records for frame in record.stack_trace()}


def hungry() -> list[bytearray]:
    return [bytearray(300_000) for _ in range(20)]


def test_allocation_in_the_block_is_recorded_with_its_function(tmp_path: Path) -> None:
    with _burst(tmp_path / "burst.bin") as burst:
        kept = hungry()

    assert burst.ended_by == "block"
    assert burst.size_bytes > 0
    assert "hungry" in _functions(tmp_path / "burst.bin")
    assert len(kept) == 20


async def test_recording_works_in_a_coroutine(tmp_path: Path) -> None:
    async with _burst(tmp_path / "burst.bin") as burst:
        hungry()

    assert burst.ended_by == "block"


def test_recording_ends_after_its_time_inside_the_block(tmp_path: Path) -> None:
    with _burst(tmp_path / "burst.bin", seconds=0.1) as burst:
        _wait(lambda: burst.ended_by is not None)
        after = burst.size_bytes
        hungry()
        assert burst.size_bytes == after

    assert burst.ended_by == "time"
    assert "hungry" not in _functions(tmp_path / "burst.bin")


def test_recording_ends_at_its_maximum_file_size(tmp_path: Path) -> None:
    with _burst(tmp_path / "burst.bin", max_bytes=20_000, seconds=60) as burst:
        deadline = time.monotonic() + 30
        while burst.ended_by is None and time.monotonic() < deadline:
            hungry()

    assert burst.ended_by == "size"
    assert "hungry" in _functions(tmp_path / "burst.bin")


def _wait(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_done() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_exception_passes_and_ends_the_recording(tmp_path: Path) -> None:
    with pytest.raises(LookupError), _burst(tmp_path / "burst.bin") as burst:
        raise LookupError("mine")

    assert burst.ended_by == "block"
    assert not [thread for thread in threading.enumerate() if "burst" in thread.name]


def test_second_recording_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with _burst(tmp_path / "one.bin") as first:
        with pytest.raises(RuntimeError, match="No more than one Tracker"), _burst(tmp_path / "two.bin"):
            pass
        hungry()

    assert first.ended_by == "block"
    assert "hungry" in _functions(tmp_path / "one.bin")


@pytest.mark.parametrize("seconds", [30.0, 0.05])
def test_profile_function_of_the_caller_is_restored(tmp_path: Path, seconds: float) -> None:
    def profile(*_: object) -> None:
        return None

    sys.setprofile(profile)
    try:
        with _burst(tmp_path / "burst.bin", seconds=seconds) as burst:
            if seconds < 1:
                _wait(lambda: burst.ended_by is not None)
        found = sys.getprofile()
    finally:
        sys.setprofile(None)

    assert found is profile


@pytest.mark.skipif(bool(native_reason()), reason="the native ledger is not built here")
@pytest.mark.parametrize("python_allocators", [False, True])
def test_native_ledger_counts_before_during_and_after(tmp_path: Path, python_allocators: bool) -> None:
    def counted() -> int:
        with memory_scope("counted", meter="native") as scope:
            kept = [bytes(1000) for _ in range(1000)]
            found = scope.usage.retained_bytes
        return found if kept else 0

    before = counted()
    with _burst(tmp_path / "burst.bin", python_allocators=python_allocators):
        during = counted()
    after = counted()

    assert before == pytest.approx(1_041_000, rel=0.05)
    assert during == pytest.approx(before, rel=0.02)
    assert after == pytest.approx(before, rel=0.02)


def test_existing_file_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "burst.bin"
    path.write_text("precious")

    with pytest.raises(ConfigError, match="does not exist yet"):
        _burst(path)

    assert path.read_text() == "precious"


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": -1}, {"max_bytes": "lots"}, {"max_bytes": 0}])
def test_invalid_limits_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _burst(tmp_path / "burst.bin", **options)


def test_missing_memray_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("memtools.testing.memray")
    monkeypatch.setitem(sys.modules, "memray", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'memtools\[memray\]'"):
        module.burst_recording(tmp_path / "burst.bin")


def test_second_entry_of_one_recording_is_refused(tmp_path: Path) -> None:
    burst = _burst(tmp_path / "burst.bin")
    with burst:
        pass

    with pytest.raises(RuntimeError, match="can be entered once"), burst:
        pass
