"""Freezing the existing objects, and unfreezing them for code that must see every object."""

import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memtools._gc import freeze_existing, unfreeze
from memtools.heap import heap_census, why_alive

_holder: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    were_frozen = gc.get_freeze_count() > 0  # by conftest.py, to make the tests faster
    gc.unfreeze()
    yield
    unfreeze()
    gc.unfreeze()
    _holder.clear()
    if were_frozen:
        gc.freeze()


def test_frozen_objects_are_hidden_until_unfrozen() -> None:
    target = [object()]
    freeze_existing()
    assert gc.get_freeze_count() > 1000
    assert not any(found is target for found in gc.get_objects())

    unfreeze()

    assert gc.get_freeze_count() == 0
    assert any(found is target for found in gc.get_objects())


def test_objects_frozen_by_other_code_stay_frozen() -> None:
    unfreeze()
    gc.freeze()
    frozen = gc.get_freeze_count()

    unfreeze()

    assert gc.get_freeze_count() >= frozen - 10  # some objects died meanwhile


def test_heap_functions_see_frozen_objects() -> None:
    _holder["items"] = [[number] for number in range(5000)]
    freeze_existing()
    assert id(_holder["items"]) in heap_census().containers

    freeze_existing()
    answer = why_alive(_holder["items"][7])
    assert "_holder" in str(answer)


def test_path_that_ends_at_frozen_objects_says_so() -> None:
    class Kept: ...

    inner: list[Any] = []
    _holder["inner"] = inner
    gc.freeze()
    inner.append(Kept())
    gc.freeze()
    inner.append(Kept())

    answer = why_alive(Kept)

    assert "gc.freeze()" in str(answer)


def _under_run(tmp_path: Path, program: str, *options: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    command = [sys.executable, "-m", "memtools", "run", *options, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    return result.stdout


def test_run_hides_older_objects_from_collections(tmp_path: Path) -> None:
    program = "import gc; print(gc.get_freeze_count(), len(gc.get_objects()))"

    frozen, own = map(int, _under_run(tmp_path, program).split())
    frozen_beside_leaks, _ = map(int, _under_run(tmp_path, program, "--leaks").split())
    bare = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert frozen > 10_000
    assert own < 2_000
    assert frozen_beside_leaks == int(bare.stdout.split()[0])  # 3.12 freezes some hundreds itself


def test_why_alive_under_run_finds_holders_in_older_modules(tmp_path: Path) -> None:
    program = """
        import logging
        from memtools.heap import why_alive

        class Kept: ...

        kept = Kept()
        logging.root.filters.append(kept)
        kept = None
        print(why_alive(Kept))
    """

    output = _under_run(tmp_path, program)

    assert "logging.root" in output
    assert "filters" in output
