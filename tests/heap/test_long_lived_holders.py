"""The holder that `why_alive` names among very many, and holders in C code."""

import re
import subprocess
import sys
from pathlib import Path

from memtools.heap import growth_between, heap_census, why_alive

PROGRAM = Path(__file__).parent / "programs" / "atexit_callbacks.py"


class Task:
    """The object that is kept alive."""


class Service:
    def __init__(self) -> None:
        self.running: set[Task] = set()
        self.callbacks: list[object] = []


service = Service()


def test_bound_methods_do_not_crowd_out_the_long_lived_holder() -> None:
    before = heap_census()
    tasks = [Task() for _ in range(1_000)]
    service.running.update(tasks)
    service.callbacks.extend(service.running.discard for _ in tasks)

    (grown,) = [growth for growth in growth_between(before, heap_census()) if growth.address == id(service.running)]
    answer = why_alive(grown)

    assert answer.paths[0].is_rooted
    assert "Service.running" in str(answer)
    service.running.clear()
    service.callbacks.clear()


def test_example_of_bytes_is_their_size() -> None:
    before = heap_census()
    service.callbacks.extend(bytes(4_321) for _ in range(500))

    (grown,) = [growth for growth in growth_between(before, heap_census()) if growth.address == id(service.callbacks)]
    answer = why_alive(grown)

    assert answer.example == "<4,321 bytes>"
    service.callbacks.clear()


def test_atexit_callbacks_held_in_c_code_are_reported() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=60, check=True)

    assert "bound method Job.clean_up" in done.stdout
    assert re.search(r"20\d functions are registered with atexit: unregister them", done.stdout)
