"""What is set aside for collections, and that it comes back for those who have to see everything."""

import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memtools._gc import unfreeze, freeze_existing
from memtools.heap import heap_census, why_alive

_holder: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    unfreeze()
    gc.unfreeze()
    _holder.clear()


def test_what_is_set_aside_is_hidden_from_collections_until_it_is_brought_back() -> None:
    mine = [object()]
    freeze_existing()
    assert gc.get_freeze_count() > 1000
    assert not any(one is mine for one in gc.get_objects())

    unfreeze()

    assert gc.get_freeze_count() == 0
    assert any(one is mine for one in gc.get_objects())


def test_what_somebody_else_has_frozen_stays_so() -> None:
    unfreeze()
    gc.freeze()
    frozen = gc.get_freeze_count()

    unfreeze()

    assert gc.get_freeze_count() >= frozen - 10  # what has died meanwhile


def test_whoever_looks_at_the_heap_sees_what_was_set_aside() -> None:
    _holder["items"] = [[number] for number in range(5000)]
    freeze_existing()
    assert id(_holder["items"]) in heap_census().containers

    freeze_existing()
    answer = why_alive(_holder["items"][7])
    assert "_holder" in str(answer)


def test_a_way_that_ends_at_what_the_program_has_set_aside_says_so() -> None:
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    return done.stdout


def test_a_program_under_run_has_collections_that_look_at_its_own_objects_only(tmp_path: Path) -> None:
    program = "import gc; print(gc.get_freeze_count(), len(gc.get_objects()))"

    frozen, own = map(int, _under_run(tmp_path, program).split())
    frozen_beside_leaks, _ = map(int, _under_run(tmp_path, program, "--leaks").split())
    bare = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert frozen > 10_000
    assert own < 2_000
    assert frozen_beside_leaks == int(bare.stdout.split()[0])  # 3.12 sets some hundreds aside itself


def test_a_program_under_run_may_ask_who_keeps_what_it_hangs_on_older_modules(tmp_path: Path) -> None:
    program = """
        import logging
        from memtools.heap import why_alive

        class Kept: ...

        kept = Kept()
        logging.root.filters.append(kept)
        kept = None
        print(why_alive(Kept))
    """

    told = _under_run(tmp_path, program)

    assert "logging.root" in told
    assert "filters" in told
