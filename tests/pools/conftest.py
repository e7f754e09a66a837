"""Tasks that worker processes can import, and a main module that they import quickly."""

import multiprocessing.forkserver
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Workers get the path of their parent, and find `pool_tasks` there; so do the modules of the tests, while collected.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="package")
def quick_start_of_workers() -> Iterator[None]:
    """Have workers start in some hundredths of a second: from a server, and without pytest's main module."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    if sys.platform != "win32":
        multiprocessing.set_forkserver_preload(["memtools.pools._worker", "pool_tasks"])
        multiprocessing.forkserver.ensure_running()

    yield

    sys.modules["__main__"] = main
    if sys.platform != "win32":
        multiprocessing.set_forkserver_preload(["__main__"])
        multiprocessing.forkserver._forkserver._stop()


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition holds; fail after 20 s."""

    def wait_for(condition: Callable[[], object]) -> None:
        end_at = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end_at, "it did not happen within 20 s"
            time.sleep(0.01)

    return wait_for
