"""Stress tests record each round and give the verdict of a leak test."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from memtools.analysis import Verdict
from memtools.errors import ConfigError
from memtools.testing import LeakReport, StressReport, StressRound, StressTest
from memtools.testing._find_leaks import Progress
from memtools.testing._stress_test import Latencies, RoundRecorder

kept: list[bytes] = []


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    kept.clear()


def keeps(size: int = 2048) -> None:
    kept.append(bytes(size))


def test_clean_operation_has_the_requested_rounds() -> None:
    report = StressTest(lambda: bytes(1000), rounds=4, calls=25).run()

    assert report.answer is Verdict.CLEAN
    assert [one.calls for one in report.rounds] == [0, 25, 25, 25, 25]
    assert [one.number for one in report.rounds] == [0, 1, 2, 3, 4]
    assert report.calls == 100
    assert all(one.resident_bytes > 0 for one in report.rounds)


def test_leak_is_found_named_and_visible_in_the_rounds() -> None:
    report = StressTest(keeps, rounds=3, calls=50, min_duration=0).run()

    assert report.is_leak
    assert any(f"{__name__}.kept" in line for line in report.verdict.holders)
    assert len(report.rounds) > 4  # more rounds told it from a cache that fills up
    grown = [
        after.live_bytes - before.live_bytes for before, after in zip(report.rounds, report.rounds[1:], strict=False)
    ]
    assert all(size >= 2048 * one.calls for size, one in zip(grown, report.rounds[1:], strict=True))


def test_percentiles_rise_and_belong_to_their_round() -> None:
    report = StressTest(lambda: sum(range(2_000)), rounds=3, calls=100).run()

    for one in report.rounds[1:]:
        assert 0 < one.p50_s <= one.p95_s <= one.p99_s <= one.longest_s <= one.duration_s
    assert report.rounds[0].p50_s == 0


async def test_calls_of_a_coroutine_function_run_concurrently() -> None:
    running: list[int] = [0, 0]

    async def works(step: float) -> None:
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(step)
        running[0] -= 1

    report = await StressTest(works, args=(0.0001,), rounds=3, calls=20, warmup=0, concurrency=5).run()

    assert running == [0, 5]
    assert report.answer is not Verdict.LEAK
    assert report.calls >= 60
    assert "5 concurrently" in report.svg()


@pytest.mark.once
async def test_leak_of_a_coroutine_function_is_found() -> None:
    async def keeps_and_sleeps() -> None:
        await asyncio.sleep(0)
        kept.append(bytes(1000))

    report = await StressTest(keeps_and_sleeps, rounds=3, calls=20, concurrency=4, min_duration=0).run()

    assert report.is_leak


def test_exception_of_the_operation_passes() -> None:
    with pytest.raises(ZeroDivisionError):
        StressTest(lambda: 1 // 0).run()


async def test_exception_of_a_concurrent_call_passes() -> None:
    async def fails() -> None:
        raise LookupError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        await StressTest(fails, warmup=0, concurrency=3).run()

    assert caught.group_contains(LookupError, match="mine")


async def test_cancellation_ends_the_calls_and_passes() -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    running = asyncio.ensure_future(StressTest(hangs, warmup=0, concurrency=3).run())
    await asyncio.sleep(0.01)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.once
def test_calls_stop_at_the_maximum_growth() -> None:
    report = StressTest(keeps, args=(100_000,), rounds=50, calls=10, max_bytes="8 MiB").run()

    assert report.is_leak
    assert report.calls < 200


def test_many_rounds_fit_into_the_report() -> None:
    report = StressTest(lambda: None, rounds=70, calls=1).run()

    assert len(report.rounds) >= 71


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        ("rounds", 0), ("calls", 0), ("concurrency", 0), ("concurrency", 2), ("max_bytes", "many"), ("tolerance", -1),
        ("meter", "best"),
    ],
)  # fmt: skip
def test_invalid_option_is_refused_at_construction(choice: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=choice):
        StressTest(print, **{choice: value})


@pytest.fixture
def report() -> StressReport:
    verdict = LeakReport("refresh \x1b[31m<b>", Verdict.LEAK, (), ("list +1 <- shop.kept & <co>",), 300, 1.5, "native")
    rounds = [
        StressRound(number, 100 if number else 0, (50 + number) << 20, number * 4096, 0.1, 1e-3, 2e-3, 5e-3, 9e-3)
        for number in range(4)
    ]
    return StressReport(verdict, tuple(rounds))


def test_text_is_a_table_that_fits_the_terminal(report: StressReport) -> None:
    lines = report.to_text(width=90, ascii_only=False).splitlines()

    assert "leak after 300 calls" in lines[0]
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) <= 90
    row = next(line for line in lines if line.strip().startswith("3 "))
    assert row.split("  ")[-1].strip() == "9.0 ms"
    assert "▁▃▆█" in lines[-2]
    assert lines[-1].endswith("0 B to 12.0 KiB")


def test_text_is_ascii_on_an_ascii_stream(report: StressReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))

    assert str(report).isascii()


def test_many_rounds_show_the_first_and_the_last(report: StressReport) -> None:
    rounds = tuple(StressRound(number, 1, 1, 1, 1, 1, 1, 1, 1) for number in range(200))
    lines = StressReport(report.verdict, rounds).to_text(width=100, ascii_only=True).splitlines()

    assert len(lines) < 40
    assert any(line.split()[:1] == ["199"] for line in lines)


@pytest.mark.parametrize("ending", [".html", ".svg", ".json", ".txt"])
def test_report_is_written_in_the_format_of_the_suffix(report: StressReport, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"stress{ending}"

    report.write(path)

    text = path.read_text("utf-8")
    assert "leak" in text
    assert "\x1b" not in text
    if ending == ".svg":
        ElementTree.fromstring(text)
    if ending == ".json":
        assert json.loads(text) == report.to_dict()
    if ending in (".html", ".svg"):
        assert "<b>" not in text
        assert "<script" not in text
        assert "&lt;co&gt;" in text


def test_unknown_suffix_is_refused_and_nothing_is_written(report: StressReport, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.html, \.svg"):
        report.write(tmp_path / "stress.pdf")

    assert list(tmp_path.iterdir()) == []


def test_verdict_is_the_title_of_the_chart(report: StressReport) -> None:
    root = ElementTree.fromstring(report.svg())
    title = next(one for one in root.iter() if "mt-title" in one.attrib.get("class", ""))

    assert (title.text or "").endswith("leak")
    assert "mt-bad" in title.attrib["class"]
    assert report._repr_html_() == report.svg()


def test_many_latencies_keep_their_percentiles() -> None:
    latencies = Latencies()
    for number in range(100_000):
        latencies.add(number / 100_000)

    assert latencies.percentile(50) == pytest.approx(0.5, abs=0.001)
    assert latencies.percentile(99) == pytest.approx(0.99, abs=0.001)
    assert latencies.longest_s == 99_999 / 100_000
    latencies.clear()
    assert latencies.percentile(50) == latencies.longest_s == 0.0


def test_round_lasts_from_first_call_to_end_of_last() -> None:
    now = [100.0]
    rounds = RoundRecorder("refresh", 2, Progress(is_enabled=False), clock=lambda: now[0])
    rounds.record(0, 0, 5_000)
    rounds.last_end = 102.5
    now[0] = 110.0  # a collection took its time

    rounds.record(1, 10, 7_000)

    first = rounds.rounds()[1]
    assert first.duration_s == 2.5
    assert first.live_bytes == 2_000


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal on Windows")
def test_progress_is_erased_at_the_end() -> None:
    import pty

    code = "from memtools.testing import StressTest; StressTest(lambda: None, rounds=3, calls=2).run()"
    above, below = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", code], stderr=below, check=True)
        shown = os.read(above, 10_000).decode()
    finally:
        os.close(above)
        os.close(below)

    assert "round 3 of 3, 6 calls, resident" in shown
    assert shown.endswith("\r\x1b[K")
