"""The calls that add come from C or from Python: both pass one suite, and who has no compiler has the other one."""

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
from memtools.structures._window import choose_core

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
SUITES = [
    *sorted(path for path in FOLDER.glob("test_bounded_list*.py") if path != Path(__file__)),
    FOLDER.parent / "conformance" / "test_cpython_list.py",
]
IS_BUILT = importlib.util.find_spec("memtools.structures._fast_window") is not None
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()

needs_native = pytest.mark.skipif(not (IS_BUILT and HAS_GIL), reason="the C list was not built, or declines itself")


def run(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    # -P: the package that this run tests, which may be an installed one, and not the files beside the tests.
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=timeout
    )


@needs_native
def test_this_run_has_the_c_type() -> None:
    names = [kind.__name__ for kind in BoundedList.__mro__]

    assert "FastWindow" in names
    assert "PyBoundedListCore" not in names


@needs_native
def test_the_python_type_passes_the_same_suites() -> None:
    suite = run("-m", "pytest", "-p", "no:cacheprovider", *map(str, SUITES), MEMTOOLS_NATIVE="0")

    assert "bounded lists: PyBoundedListCore" in suite.stdout
    assert suite.returncode == 0, suite.stdout[-4000:]
    assert len(SUITES) > 6


@needs_native
def test_every_way_of_adding_in_place_is_bounded() -> None:
    recent: BoundedList[int] = BoundedList([1, 2], 3)

    same = operator.iconcat(recent, [3, 4])  # asks another slot than `+=`; a `__iadd__` in Python does not fill it

    assert same is recent
    assert recent == [2, 3, 4]


@needs_native
def test_each_item_that_goes_is_counted_once_however_many_threads_add() -> None:
    recent: BoundedList[int] = BoundedList(maxlen=50)

    threads = [Thread(target=lambda: [recent.append(number) for number in range(20_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(recent) == 50
    assert recent.statistics().evicted == 80_000 - 50


def test_the_environment_can_forbid_the_c_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTOOLS_NATIVE", "0")

    assert choose_core().__name__ == "PyBoundedListCore"


def test_without_the_c_type_there_is_the_python_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memtools.structures._fast_window", None)  # what a missing file looks like
    monkeypatch.delattr(structures, "_fast_window", raising=False)

    assert choose_core().__name__ == "PyBoundedListCore"


def test_a_pickle_does_not_say_which_type_made_it() -> None:
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
def test_building_goes_on_without_it(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="building takes setuptools 77 or later")
    if os.name != "posix" or not (ROOT / "memtools").is_dir():
        pytest.skip("takes a checkout, and a compiler that CC names")

    built = run(
        "setup.py", "build_ext", "--force", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path), **environment
    )

    assert built.returncode == 0, built.stderr
    assert list(tmp_path.rglob("*.so")) == []
