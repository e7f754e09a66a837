"""`%%memory` in a real shell of IPython, and in a notebook."""

import asyncio
import atexit
import contextvars
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memtools
from memtools.ledger import native_reason
from memtools.reports import Report

IPython = pytest.importorskip("IPython")

needs_native = pytest.mark.skipif(bool(native_reason()), reason="live bytes are known to the native meter only")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """What was displayed."""
    reports: list[Report] = []
    monkeypatch.setattr("IPython.display.display", reports.append)
    return reports


@pytest.fixture
def shell(shown: list[Report]) -> Iterator[Any]:
    """A shell with the extension, of its own namespace."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    hook = sys.displayhook, sys.excepthook
    shell = InteractiveShell(config=config, user_ns={})
    shell.run_cell("%load_ext memtools").raise_error()

    yield shell

    shell.run_cell("%unload_ext memtools")
    shell.atexit_operations()
    atexit.unregister(shell.atexit_operations)
    sys.displayhook, sys.excepthook = hook


def test_cell_shows_what_it_used(shell: Any, shown: list[Report]) -> None:
    cell = "%%memory import\nfrom memtools import profile_memory\n@profile_memory\ndef load():\n    "
    cell += "return [str(number) for number in range(20_000)]\nrows = load()\nlen(rows)"

    result = shell.run_cell(cell)

    assert result.success
    assert result.result == 20_000
    assert len(shell.user_ns["rows"]) == 20_000
    (taken,) = shown
    assert taken.title == "import"
    assert [row.name for row in taken.functions] == ["load"]
    assert 1 << 20 < taken.scopes[0].peak_bytes < 16 << 20
    assert taken.duration_s is not None


@needs_native
def test_what_is_alive_is_told_per_owner(shell: Any, shown: list[Report]) -> None:
    shell.run_cell("%%memory\nkept = [bytes(1000) for _ in range(2000)]\ndropped = bytes(9_000_000)\ndel dropped")

    (taken,) = shown
    assert taken.meters == ("native",)
    assert taken.scopes[0].live_bytes is not None
    assert 2_000_000 < taken.scopes[0].live_bytes < 2_500_000
    assert taken.scopes[0].peak_bytes > 9_000_000
    assert not taken.notes


def test_last_expression_is_displayed(shell: Any, shown: list[Report], capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_cell("%%memory\n6 * 7")

    assert capsys.readouterr().out.endswith("42\n")
    assert len(shown) == 1


def test_exception_of_the_cell_passes(shell: Any, shown: list[Report]) -> None:
    result = shell.run_cell("%%memory\nbefore = 1\n1 / 0")

    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert shell.user_ns["before"] == 1
    assert shown[0].scopes[0].failed == 1


@pytest.mark.parametrize("cell", ["%%memory\n1 +", "%%memory --meter\n1", "%%memory --meter bytes\n1"])
def test_cell_that_cannot_run_is_an_error_and_shows_nothing(cell: str, shell: Any, shown: list[Report]) -> None:
    result = shell.run_cell(cell)

    assert isinstance(result.error_in_exec, SyntaxError | ValueError)
    assert shown == []


def test_meter_can_be_chosen(shell: Any, shown: list[Report], monkeypatch: pytest.MonkeyPatch) -> None:
    shell.run_cell("%%memory one --meter rss\n1")
    monkeypatch.setenv("MEMTOOLS_METER", "rss")
    shell.run_cell("%%memory two\n1")

    assert [taken.meters for taken in shown] == [("rss",), ("rss",)]
    assert [taken.title for taken in shown] == ["one", "two"]


def test_cell_of_the_same_name_has_figures_of_its_own(shell: Any, shown: list[Report]) -> None:
    for _ in range(2):
        shell.run_cell("%%memory again\n[str(number) for number in range(1000)]; None")

    assert [taken.title for taken in shown] == ["again", "again (2)"]
    assert [taken.scopes[0].calls for taken in shown] == [1, 1]


AWAITING = """%%memory
import asyncio
async def work():
    global kept
    kept = [bytes(1000) for _ in range(1000)]
    await asyncio.sleep(0)
await asyncio.create_task(work(), name="worker")
len(kept)"""


def test_await_runs_on_a_loop_of_its_own(shell: Any, shown: list[Report]) -> None:
    assert shell.run_cell(AWAITING).success

    assert "worker" in {row.name for row in shown[0].tasks}


def test_await_works_where_a_loop_is_running(shell: Any, shown: list[Report]) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    shell.user_ns["variable"] = variable

    async def notebook() -> Any:
        variable.set(7)
        return shell.run_cell(f"{AWAITING}\nassert variable.get() == 7")

    assert asyncio.run(notebook()).success
    assert "worker" in {row.name for row in shown[0].tasks}


def test_exception_after_an_await_passes(shell: Any, shown: list[Report]) -> None:
    async def notebook() -> Any:
        return shell.run_cell("%%memory\nimport asyncio\nawait asyncio.sleep(0)\nraise KeyError('x')")

    assert isinstance(asyncio.run(notebook()).error_in_exec, KeyError)
    assert len(shown) == 1


def test_unloaded_extension_leaves_no_magic(shell: Any) -> None:
    shell.run_cell("%unload_ext memtools")

    assert "memory" not in shell.magics_manager.magics["cell"]


def test_extension_is_no_name_of_the_package() -> None:
    assert callable(memtools.load_ipython_extension)  # type: ignore[attr-defined]  # by `__getattr__`, for IPython
    assert "load_ipython_extension" not in dir(memtools)


def test_report_in_a_terminal_is_its_table(shell: Any) -> None:
    from IPython.lib.pretty import pretty

    taken = memtools.report(title="this one")

    assert pretty(taken) == taken.to_text()
    assert "<table" in taken._repr_html_()


# The client and the kernel leave sockets behind until their process ends, so they have one of their own.
NOTEBOOK = """
import json, nbclient, nbformat, sys
cells = [nbformat.v4.new_code_cell(cell) for cell in json.load(sys.stdin)]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True).execute()
print(json.dumps(notebook.cells))
"""


@pytest.mark.once
def test_notebook_runs(tmp_path: Path) -> None:
    for name in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(name)
    folder = str(Path(memtools.__file__).parent.parent)
    variables = {**os.environ, "PYTHONPATH": folder, "IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    cells = json.dumps(["%load_ext memtools", AWAITING, "%%memory failing\n1 / 0"])

    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK], input=cells, capture_output=True, text=True, timeout=120, check=False,
        cwd=tmp_path, env=variables,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    _, awaiting, failing = json.loads(done.stdout)
    data = [output.get("data", {}) for output in awaiting["outputs"]]
    assert any("worker" in one.get("text/html", "") for one in data)
    assert any(one.get("text/plain") == "1000" for one in data)
    assert [one["ename"] for one in failing["outputs"] if one["output_type"] == "error"] == ["ZeroDivisionError"]
