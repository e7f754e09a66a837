"""Run pytest on a small suite, in a process of its own, and give what it measured."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# From a checkout that is not installed nobody announces the plugin.
_LOAD = (
    [] if any(one.value == "pytest_memtools" for one in entry_points(group="pytest11")) else ["-p", "pytest_memtools"]
)

Suite = Callable[..., Any]


@pytest.fixture
def run_suite(tmp_path: Path) -> Suite:
    """Return what runs a suite given as text, with further arguments, and gives outcome, text and figures."""

    def run(source: str, *arguments: str, ini: str = "", plugins: str = "", **files: str) -> SimpleNamespace:
        (tmp_path / "test_suite.py").write_text(textwrap.dedent(source))
        (tmp_path / "pytest.ini").write_text(f"[pytest]\n{textwrap.dedent(ini)}")
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        figures = tmp_path / "figures.json"
        command = [sys.executable, "-m", "pytest", *_LOAD, "-p", "no:cacheprovider", "-p", "no:randomly", "-rA"]
        command += [f"--memtools-report={figures}", *arguments]
        hidden = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_CURRENT_TEST")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        result = subprocess.run(
            command, cwd=tmp_path, env={**environment, "COLUMNS": "200"}, capture_output=True, text=True, timeout=120
        )
        text = result.stdout + result.stderr
        found = json.loads(figures.read_text())["tests"] if figures.exists() else []
        outcomes = {
            line.split("::")[-1].split()[0]: line.split()[0]
            for line in text.splitlines()
            if line.startswith(("PASSED ", "FAILED ", "ERROR "))
        }
        by_name = {one["test"].split("::")[-1]: one for one in found}
        return SimpleNamespace(code=result.returncode, text=text, figures=by_name, outcomes=outcomes)

    return run
