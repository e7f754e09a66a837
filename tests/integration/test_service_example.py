"""The example of a whole service is run as its page says, and tells what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed here")

pytestmark = pytest.mark.once

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "service.py"
TIMEOUT_S = 110


@pytest.fixture(scope="module")
def story() -> subprocess.CompletedProcess[str]:
    """The demonstration, run once for all tests of this file."""
    # Inherited by the service: what it leaves open at its end is told on stderr.
    environment = os.environ | {"PYTHONWARNINGS": "always::ResourceWarning"}
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--seconds", "60"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment,
    )


def _section(story: subprocess.CompletedProcess[str], heading: str) -> str:
    found = re.search(rf"^{heading}.*?\n(.*?)(?:\n\n[a-z]|\Z)", story.stdout, re.MULTILINE | re.DOTALL)
    assert found is not None, story.stdout + story.stderr
    return found[1]


def test_example_ends_cleanly_and_fails_no_request(story) -> None:
    assert story.returncode == 0, story.stdout + story.stderr
    assert "Traceback" not in story.stderr
    assert "ResourceWarning" not in story.stderr
    answered, refused, failed = re.findall(r"([\d,]+) (?:answered|refused|failed)", story.stdout.splitlines()[0])
    assert int(answered.replace(",", "")) > 1000
    assert int(refused) > 0
    assert failed == "0"


def test_example_passes_through_warning(story) -> None:
    levels = re.findall(r"NORMAL|WARNING|CRITICAL", _section(story, "levels"))

    assert levels[:2] == ["NORMAL", "WARNING"]


def test_example_alerts_the_webhook_and_escalates(story) -> None:
    alerts = _section(story, "alerts that reached the webhook")

    assert re.search(r"opened +warning +memory is at", alerts)
    assert re.search(r"opened +warning +all clean-up steps ran", alerts)
    assert re.search(r"escalated +critical", alerts) or re.search(r"opened +critical", alerts)


def test_example_counts_requests_by_route_and_level_changes(story) -> None:
    metrics = _section(story, "metrics")

    (searched,) = re.findall(r'memtools_scope_entered_total\{kind="scope",name="/search"\} ([\d.]+)', metrics)
    assert float(searched) > 1000
    assert 'name="/orders/{number:int}"' in metrics
    assert 'memtools_monitor_level{name="shop"} 2.0' in metrics
    assert 'memtools_monitor_changes_total{name="shop",to="warning"} 1.0' in metrics


def test_example_names_the_endpoint_and_the_line_to_change(story) -> None:
    report = _section(story, "what to change:")

    lines = EXAMPLE.read_text("utf-8").splitlines()
    (line,) = (number for number, text in enumerate(lines, 1) if "self.pages: dict" in text)
    assert re.search(rf"Shop\.pages holds [\d.]+ MiB \(.*service\.py:{line}\): bound this dict", report)
    assert re.search(r"^ +- /search holds [\d.]+ MiB", report, re.MULTILINE)
