"""Who is named where very many hold: the one who lasts, and what the collector cannot see."""

import subprocess
import sys

from memtools.heap import growth_between, heap_census, why_alive

AT_EXIT = """
import atexit
from memtools.heap import growth_between, heap_census, why_alive

class Job:
    def clean_up(self): pass

before = census()
for _ in range(200):
    atexit.register(Job().clean_up)
(jobs,) = [one for one in growing(before, census()) if one.type_name == "Job"]
print(why_alive(jobs))
"""


class Task:
    """What is kept."""


class Service:
    def __init__(self) -> None:
        self.running: set[Task] = set()
        self.callbacks: list[object] = []


service = Service()


def test_a_thousand_bound_methods_do_not_hide_the_attribute_that_holds() -> None:
    before = heap_census()
    tasks = [Task() for _ in range(1_000)]
    service.running.update(tasks)
    service.callbacks.extend(service.running.discard for _ in tasks)

    (grown,) = [one for one in growth_between(before, heap_census()) if one.address == id(service.running)]
    answer = why_alive(grown)

    assert answer.ways[0].is_rooted
    assert "Service.running" in str(answer)
    service.running.clear()
    service.callbacks.clear()


def test_the_newest_of_a_list_of_bytes_is_told_by_its_size() -> None:
    before = heap_census()
    service.callbacks.extend(bytes(4_321) for _ in range(500))

    (grown,) = [one for one in growth_between(before, heap_census()) if one.address == id(service.callbacks)]
    answer = why_alive(grown)

    assert answer.example == "<4,321 bytes>"
    service.callbacks.clear()


def test_what_is_registered_at_exit_is_told_though_it_is_held_in_c() -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60, check=True)

    assert "bound method Job.clean_up" in done.stdout
    assert "atexit has 20" in done.stdout
    assert "unregister" in done.stdout
