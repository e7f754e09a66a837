"""Register many bound methods with atexit, and print what keeps their objects alive."""

import atexit

from memtools.heap import growth_between, heap_census, why_alive


class Job:
    def clean_up(self) -> None:
        """Do nothing."""


before = heap_census()
for _ in range(200):
    atexit.register(Job().clean_up)
(jobs,) = [growth for growth in growth_between(before, heap_census()) if growth.type_name == "Job"]
print(why_alive(jobs))
