"""Child processes beside an investigation: nothing is said of what is not known."""

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count

import pytest

from memtools.analysis import LeakKind, LeakVerdict
from memtools.leaks import Diagnosis
from memtools.leaks._children import ChildProcess, ChildSamples
from memtools.leaks._diagnosis import make_diagnosis
from memtools.leaks._investigation import Investigation
from memtools.readings._counters import Counters

MIB = 1 << 20
NONE = LeakVerdict(LeakKind.NONE, 0.0, 0.0, 15.0, "what is not given back does not grow")
STEADY = """
import time
kept = []
for _ in range(10_000):
    time.sleep(0.01)
"""
GROWING = STEADY + "    kept.append(bytearray(b'x') * 300_000)\n"


@pytest.fixture(params=[GROWING, STEADY], ids=["growing", "steady"])
def child(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", request.param]) as process:
        yield process
        process.kill()


def test_growth_of_a_child_process_is_seen(child: subprocess.Popen[bytes], request: pytest.FixtureRequest) -> None:
    samples = ChildSamples()
    time.sleep(0.3)  # the interpreter starts
    samples.look()
    begun = time.monotonic()
    while time.monotonic() < begun + 3:
        samples.sample(time.monotonic())
        time.sleep(0.05)

    (found,) = samples.processes(until=time.monotonic(), is_ending=False)

    assert (found.pid, found.verdict.is_leak) == (child.pid, request.node.callspec.id == "growing")
    assert found.name.startswith("python")
    assert found.to_dict()["pid"] == child.pid


def test_child_that_has_ended_at_once_is_left_out() -> None:
    samples = ChildSamples()
    with subprocess.Popen([sys.executable, "-c", STEADY]) as process:
        samples.look()
        samples.sample(1.0)
        process.kill()
    samples.sample(2.0)

    assert samples.processes(until=9.0, is_ending=False) == ()


def test_investigation_that_has_a_child_says_so() -> None:
    times = count()
    investigation = Investigation(read=lambda: Counters(float(next(times)), MIB, 9, 9), left_fraction=lambda: 0.0)
    with subprocess.Popen([sys.executable, "-c", STEADY]) as process:
        for _ in investigation.count():
            pass
        for _ in range(60):
            investigation.sample()
        (line,) = investigation.diagnosis().lines()
        process.kill()

    assert line.startswith("no leak seen in ")
    assert "in this process and its 1 child process: " in line


def verdict_with(*children: LeakVerdict) -> Diagnosis:
    found = [ChildProcess(100 + place, "worker", verdict) for place, verdict in enumerate(children)]
    return make_diagnosis(NONE, [], [], "", found)


def test_no_leak_is_said_of_examined_children_only() -> None:
    unknown = LeakVerdict(LeakKind.UNKNOWN, 0.0, 0.0, 0.0, "3 samples are too few for a verdict")

    assert verdict_with().lines()[0].startswith("no leak seen in 15 s: ")
    assert (
        verdict_with(NONE, NONE).lines()[0].startswith("no leak seen in 15 s in this process and its 2 child processes")
    )
    assert "in this process; cannot tell of its child processes (101)" in verdict_with(NONE, unknown).lines()[0]


def test_growing_child_is_a_leak_that_names_the_process() -> None:
    diagnosis = verdict_with(LeakVerdict(LeakKind.NATIVE, 2.0 * MIB, 0.0, 15.0, "resident memory grows"))

    assert diagnosis.is_leak
    (line,) = diagnosis.lines()
    assert line.startswith("LEAK unknown +2.0 MiB/s | resident memory of child process 100 (worker) grows all the time")
    assert diagnosis.to_dict()["children"] == [
        {"pid": 100, "name": "worker", "verdict": "native", "bytes_per_s": 2 * MIB}
    ]
