"""Run pytest on a small suite, and return what it measured."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import memtools

# A checkout that is not installed has no entry point for the plugin.
_LOAD = (
    [] if any(one.value == "pytest_memtools" for one in entry_points(group="pytest11")) else ["-p", "pytest_memtools"]
)

Suite = Callable[..., Any]


@pytest.fixture(scope="session")
def every_module_loaded() -> None:
    """Import all of memtools: a run in this process removes the modules that it was the first to import."""
    for found in pkgutil.walk_packages(memtools.__path__, "memtools."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ImportError:
                continue  # an extra that is not installed


@pytest.fixture
def run_suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, every_module_loaded: None) -> Suite:
    """Return a function that runs a suite, a file or a text, and returns its outcome, output and figures.

    The suite runs in this process, which saves a second each time. In its own process runs what leaves threads or
    descriptors behind or asks what is imported, and what measures growth: pytester records every call of a hook, and
    that grows.
    """
    monkeypatch.setenv("COLUMNS", "200")

    def run(
        suite: str | Path, *arguments: str, ini: str = "", own_process: bool = False, **files: str
    ) -> SimpleNamespace:
        source = suite.read_text(encoding="utf-8") if isinstance(suite, Path) else textwrap.dedent(suite)
        for name, text in {"test_suite": source, **files}.items():
            (pytester.path / f"{name}.py").write_text(text, encoding="utf-8")
        (pytester.path / "pytest.ini").write_text(f"[pytest]\n{textwrap.dedent(ini)}", encoding="utf-8")
        report = pytester.path / "figures.json"
        options = [*_LOAD, "-p", "no:cacheprovider", "-p", "no:randomly", "-rA", f"--memtools-report={report}"]
        options += ["-o", "asyncio_default_fixture_loop_scope=function", *arguments]

        if own_process:
            code, text = _run_in_own_process(pytester.path, options)
        else:
            # That plugin leaves a thread and a socket behind, where pytest-xdist is installed, too.
            result = pytester.runpytest_inprocess(*options, "-p", "no:rerunfailures")
            code, text = int(result.ret), "\n".join([*result.outlines, *result.errlines])

        measured = json.loads(report.read_text())["tests"] if report.exists() else []
        figures = {one["test"].split("::")[-1]: one for one in measured}
        return SimpleNamespace(code=code, text=text, figures=figures, outcomes=_outcomes(text))

    return run


def _run_in_own_process(folder: Path, options: list[str]) -> tuple[int, str]:
    hidden = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def _outcomes(text: str) -> dict[str, str]:
    return {
        line.split("::")[-1].split()[0]: line.split()[0]
        for line in text.splitlines()
        if line.startswith(("PASSED ", "FAILED ", "ERROR "))
    }
