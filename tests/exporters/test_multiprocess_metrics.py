"""Figures of several workers behind one port, in the multiprocess mode of prometheus_client."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from memtools.errors import ConfigError
from memtools.exporters.prometheus import MultiprocessMetrics

PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT_S = 60
ENTERED = ("memtools_scope_entered_total", "work")

Samples = dict[tuple[str, str], float]  # by the name of the sample and that of the owner, summed over processes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the mode is for processes that fork")


def run(tmp_path: Path, *lines: str) -> str:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    program = "\n".join((*START, *lines))
    done = subprocess.run(
        # The thread is stopped while the process forks, of which Python does not know.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


START = """
import os, sys, threading, time
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from memtools import BoundedList, memory_scope
from memtools.exporters.prometheus import MultiprocessMetrics

def work(times=1):
    for _ in range(times):
        with memory_scope("work", meter="rss"):
            pass

def show():
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    print(generate_latest(registry).decode(), flush=True)
""".splitlines()


def read(text: str) -> tuple[Samples, set[str]]:
    """Return the samples, and the processes that the gauges name."""
    found: Samples = {}
    processes: set[str] = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, sample.labels.get("name", sample.labels.get("type", "")))
            found[key] = found.get(key, 0) + sample.value
            processes |= {sample.labels["pid"]} if "pid" in sample.labels else set()
    return found, processes


def test_counts_are_published_once_however_often(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        "metrics = MultiprocessMetrics(interval=100)",
        "work(3); metrics.publish(); metrics.publish(); work(2); metrics.publish(); show()",
    )

    samples, processes = read(shown)
    assert samples[ENTERED] == 5
    assert samples["memtools_scope_active", "work"] == 0
    assert len(processes) == 1


def test_publication_goes_on_by_itself_and_ends_with_the_last(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        "with MultiprocessMetrics(interval=0.01):",
        "    work()",
        "    deadline = time.monotonic() + 30",
        "    while not any(name.startswith('counter') for name in os.listdir(sys.argv[0] and os.environ[",
        "        'PROMETHEUS_MULTIPROC_DIR'])) and time.monotonic() < deadline:",
        "        time.sleep(0.01)",
        "    work(4)",
        "assert not any('metrics' in thread.name for thread in threading.enumerate())",
        "work(10); time.sleep(0.1); show()",
    )

    assert read(shown)[0][ENTERED] == 5


def test_structure_that_is_gone_is_shown_as_none(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        "class Rows(BoundedList): pass",
        "metrics = MultiprocessMetrics(interval=100)",
        "rows = Rows([1, 2, 3], maxlen=10); metrics.publish(); show(); print('=====')",
        "del rows; metrics.publish(); show()",
    )

    before, after = shown.split("=====")
    assert read(before)[0]["memtools_structure_items", "Rows"] == 3
    assert read(after)[0]["memtools_structure_items", "Rows"] == 0


def test_proportional_memory_of_forks_may_be_added_up(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        "ballast = bytearray(b'x') * 60_000_000",
        "metrics = MultiprocessMetrics(interval=0.02)",
        "children = []",
        "for _ in range(3):",
        "    child = os.fork()",
        "    if not child:",
        "        time.sleep(1.5); os._exit(0)",
        "    children.append(child)",
        "time.sleep(1); metrics.publish(); show()",
        "for child in children: os.waitpid(child, 0)",
    )

    samples, processes = read(shown)
    assert len(processes) == 4
    assert samples["memtools_process_resident_bytes", ""] > 240_000_000
    if sys.platform == "linux":
        assert 60_000_000 < samples["memtools_process_proportional_bytes", ""] < 180_000_000


def test_child_counts_only_what_is_its_own(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        "metrics = MultiprocessMetrics(interval=0.02)",
        "work(5); metrics.publish()",
        "if not os.fork():",
        "    time.sleep(0.3); work(7); metrics.publish(); os._exit(0)",
        "os.wait(); work(1); metrics.publish(); show()",
    )

    assert read(shown)[0][ENTERED] == 13


def test_end_of_the_process_publishes(tmp_path: Path) -> None:
    run(tmp_path, "metrics = MultiprocessMetrics(interval=100)", "work(3)")

    assert read(run(tmp_path, "show()"))[0][ENTERED] == 3


def test_forks_during_publications_hang_no_child(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        "from prometheus_client import Counter",
        "mine = Counter('mine', 'of the program')",
        "metrics = MultiprocessMetrics(interval=0.0001)",
        "for _ in range(60):",
        "    if not os.fork():",
        "        mine.inc(); os._exit(0)",
        "    deadline = time.monotonic() + 30",
        "    while not os.waitpid(-1, os.WNOHANG)[0]:",
        "        assert time.monotonic() < deadline, 'a child hangs'",
        "        time.sleep(0.001)",
        "show()",
    )

    assert read(shown)[0]["mine_total", ""] == 60


def test_mode_that_is_off_is_refused() -> None:
    with pytest.raises(ConfigError, match="PROMETHEUS_MULTIPROC_DIR"):
        MultiprocessMetrics()


@pytest.mark.parametrize("interval", [0, -1, "soon", float("nan")])
def test_interval_must_be_above_zero(interval: float) -> None:
    with pytest.raises(ConfigError, match="interval"):
        MultiprocessMetrics(interval=interval)


def test_second_one_in_a_process_is_refused(tmp_path: Path) -> None:
    shown = run(
        tmp_path,
        "with MultiprocessMetrics(interval=100):",
        "    try: MultiprocessMetrics()",
        "    except ValueError as error: print(error)",
        "MultiprocessMetrics(interval=100).close()",
    )

    assert "one in each process" in shown


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start gunicorn with two workers, and return its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> str:
        (tmp_path / "values").mkdir()
        (tmp_path / "gunicorn.conf.py").write_text("from counted_workers import child_exit\n")
        environment = {
            **os.environ,
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "values"),
            "PYTHONPATH": os.pathsep.join([str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        words = ["--bind", "127.0.0.1:0", "--workers", "2", "--graceful-timeout", "10", *options]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", *words, "counted_workers:application"],
                env=environment,
                cwd=tmp_path,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        started.append(process)
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            if found := re.search(r"Listening at: (http://\S+)", (tmp_path / "log").read_text()):
                return found[1]
            time.sleep(0.02)
        pytest.fail((tmp_path / "log").read_text())

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode())


@pytest.mark.once
@pytest.mark.parametrize("options", [(), ("--preload",), ("--threads", "4")], ids=["sync", "preload", "gthread"])
def test_workers_of_gunicorn_are_shown_by_each(serve: Callable[..., str], options: tuple[str, ...]) -> None:
    address = serve(*options)
    workers: set[str] = set()
    requests = 0
    deadline = time.monotonic() + TIMEOUT_S
    while len(workers) < 2 and time.monotonic() < deadline:
        workers.add(get(f"{address}/work"))
        requests += 1

    ended = workers.pop()
    os.kill(int(ended), signal.SIGTERM)  # gunicorn starts another in its place
    look = functools.partial(read_from, address)
    samples, processes = until(look, lambda now: now[0].get(ENTERED) == requests and ended not in now[1])

    assert samples[ENTERED] == requests
    assert ended not in processes
    assert workers <= processes


def read_from(address: str) -> tuple[Samples, set[str]]:
    return read(get(f"{address}/metrics"))


def until(
    look: Callable[[], tuple[Samples, set[str]]], is_right: Callable[[tuple[Samples, set[str]]], bool]
) -> tuple[Samples, set[str]]:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_right(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen
