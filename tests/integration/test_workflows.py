"""The workflows are what GitHub accepts, and the steps of the one that others copy do what they say."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import memtools

_ROOT = Path(__file__).parents[2]
_WORKFLOWS = sorted((_ROOT / ".github" / "workflows").glob("*.yml"))
_IS_ANNOUNCED = any(one.value == "pytest_memtools" for one in entry_points(group="pytest11"))

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed here"),
]


@pytest.mark.parametrize("path", _WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_file_matches_the_schema_of_github(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_release_runs_only_actions_and_tools_that_are_pinned() -> None:
    workflow = (_ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    tools = (_ROOT / ".ci" / "release.txt").read_text(encoding="utf-8")

    actions = re.findall(r"uses: (\S+)(.*)", workflow)
    assert actions
    assert [name for name, _ in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name)] == []
    assert [name for name, version in actions if not re.fullmatch(r" # v\d+\.\d+\.\d+", version)] == []
    assert re.findall(r"pip install (?!--require-hashes -r \.ci/release\.txt)", workflow) == []
    assert tools.count("--hash=sha256:") >= tools.count("==") > 0


def _steps() -> dict[str, str]:
    from ruamel.yaml import YAML

    workflow: Any = YAML(typ="safe").load(_ROOT / ".github" / "workflows" / "memory-test.yml")
    return {step["name"]: step["run"] for step in workflow["jobs"]["memory"]["steps"] if "run" in step}


def _run(step: str, folder: Path, tests: str = "", program: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MEMTOOLS"))}
    environment |= {
        "TESTS": tests,
        "PROGRAM": program,
        "PYTHONPATH": os.path.dirname(os.path.dirname(memtools.__file__)),
    }
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment["PATH"]])
    if not _IS_ANNOUNCED:
        environment["PYTEST_ADDOPTS"] = "-p pytest_memtools"
    command = _steps()[step].replace("python ", f"{sys.executable} ", 1)
    return subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(_ROOT / "docs" / "examples" / "memory_tests.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="the steps are written for bash")
def test_marked_tests_pass_and_write_their_figures(folder: Path) -> None:
    done = _run("Run the tests that are marked", folder, tests="memory_tests.py")

    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((folder / "memory-tests.json").read_text())["tests"]
    assert len(figures) == 4
    assert {one["outcome"] for one in figures} == {"passed"}


@pytest.mark.skipif(sys.platform == "win32", reason="the steps are written for bash")
def test_leaking_marked_test_fails_the_step(folder: Path) -> None:
    (folder / "test_leaking.py").write_text(
        "import pytest\nkept = []\n\n@pytest.mark.memory_growth\ndef test_keeps():\n    kept.append(bytes(10_000))\n"
    )

    done = _run("Run the tests that are marked", folder, tests="test_leaking.py")

    assert done.returncode == 1
    assert "test_leaking.kept" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the steps are written for bash")
def test_program_without_a_leak_passes_both_steps(folder: Path) -> None:
    (folder / "healthy.py").write_text("import time\nrows = [str(one) for one in range(1000)]\ntime.sleep(0.5)\n")

    done = [_run(step, folder, program="healthy.py") for step in list(_steps())[-2:]]

    assert [one.returncode for one in done] == [0, 0], done


@pytest.mark.skipif(sys.platform == "win32", reason="the steps are written for bash")
def test_leaking_program_fails_the_last_step(folder: Path) -> None:
    (folder / "leaking.py").write_text(
        "import time\nkept = []\nend = time.monotonic() + 8\n"
        "while time.monotonic() < end:\n    kept.append([str(one) for one in range(100)])\n    time.sleep(0.005)\n"
    )

    looked, judged = (_run(step, folder, program="leaking.py") for step in list(_steps())[-2:])

    assert looked.returncode == 0, looked.stderr
    assert "LEAK python" in looked.stderr
    assert judged.returncode == 1, judged.stdout
