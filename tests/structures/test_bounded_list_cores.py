"""The C core and the Python core of `BoundedList`: both pass the same tests."""

import importlib.util
import operator
import os
import pickle
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from memtools import structures
from memtools.structures import BoundedList
from memtools.structures._window import LockingListCore, PyBoundedListCore, choose_core

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
SUITES = [
    *sorted(path for path in FOLDER.glob("test_bounded_list*.py") if path != Path(__file__)),
    FOLDER.parent / "conformance" / "test_cpython_list.py",
]
IS_BUILT = importlib.util.find_spec("memtools.structures._list_core") is not None
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
IN_PYTHON = PyBoundedListCore if HAS_GIL else LockingListCore

needs_native = pytest.mark.skipif(not IS_BUILT, reason="the C core was not built")


def run(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    # -P keeps the working folder off `sys.path`, so that the package of this run is tested, installed or not.
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=timeout
    )


@needs_native
def test_this_run_uses_the_c_core() -> None:
    names = [kind.__name__ for kind in BoundedList.__mro__]

    assert "CBoundedListCore" in names
    assert "PyBoundedListCore" not in names


@needs_native
def test_python_core_passes_the_same_tests(request: pytest.FixtureRequest) -> None:
    chosen = request.config.option.markexpr  # without `once` on a Python that leaves those out
    suite = run("-m", "pytest", "-p", "no:cacheprovider", "-m", chosen, *map(str, SUITES), MEMTOOLS_NATIVE="0")

    assert f"bounded lists: {IN_PYTHON.__name__}" in suite.stdout
    assert suite.returncode == 0, suite.stdout[-4000:]
    assert len(SUITES) > 6


@pytest.mark.once
@pytest.mark.skipif(not HAS_GIL, reason="the core for builds without a GIL is tested above")
def test_python_core_without_a_gil_passes_the_same_tests() -> None:
    pretend = "import sys, pytest; sys._is_gil_enabled = lambda: False; sys.exit(pytest.main(sys.argv[1:]))"

    suite = run("-c", pretend, "-p", "no:cacheprovider", *map(str, SUITES[:-1]), MEMTOOLS_NATIVE="0")

    assert "bounded lists: LockingListCore" in suite.stdout
    assert suite.returncode == 0, suite.stdout[-4000:]


@needs_native
def test_operator_iconcat_is_bounded() -> None:
    recent: BoundedList[int] = BoundedList([1, 2], 3)

    same = operator.iconcat(recent, [3, 4])  # uses another slot than `+=`, which a `__iadd__` in Python does not fill

    assert same is recent
    assert recent == [2, 3, 4]


@needs_native
def test_evictions_by_several_threads_are_counted_once() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=50)

    threads = [Thread(target=lambda: [recent.append(number) for number in range(20_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(recent) == 50
    assert recent.statistics().evicted == 80_000 - 50


def test_environment_can_disable_the_c_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTOOLS_NATIVE", "0")

    assert choose_core() is IN_PYTHON


def test_python_core_is_used_if_the_c_core_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memtools.structures._list_core", None)  # as if the file were missing
    monkeypatch.delattr(structures, "_list_core", raising=False)

    assert choose_core() is IN_PYTHON


def test_pickle_is_independent_of_the_core() -> None:
    program = (
        "import pickle, sys; from memtools import BoundedList; "
        "sys.stdout.write(pickle.dumps(BoundedList(range(9), 4, keep=2, max_bytes='1 MiB')).hex())"
    )

    made_there = run("-c", program, MEMTOOLS_NATIVE="0")
    recent = pickle.loads(bytes.fromhex(made_there.stdout))

    assert recent == [7, 8]
    assert (recent.maxlen, recent.keep, recent.max_bytes) == (4, 2, 2**20)


@pytest.mark.parametrize(
    "environment",
    [{"CC": "false"}, {"MEMTOOLS_NATIVE": "0"}],
    ids=["no compiler", "MEMTOOLS_NATIVE=0"],
)
def test_build_succeeds_without_the_c_core(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="the build requires setuptools 77 or later")
    if os.name != "posix" or not (ROOT / "memtools").is_dir():
        pytest.skip("requires a checkout and a compiler named by CC")

    built = run(
        "setup.py", "build_ext", "--force", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path), **environment
    )

    assert built.returncode == 0, built.stderr
    assert list(tmp_path.rglob("*.so")) == []
