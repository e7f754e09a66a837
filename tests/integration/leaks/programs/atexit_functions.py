"""Each job registers its clean-up for the exit of a process that never exits."""

import atexit

from _shape import play

VERDICT = "python"
OWNER = r"Job|atexit"


class Job:
    def __init__(self) -> None:
        self.files = [bytes(8_000)]

    def clean_up(self) -> None:
        self.files.clear()


def step(leaks: bool) -> None:
    for _ in range(5):
        job = Job()
        atexit.register(job.clean_up)
        if not leaks:
            atexit.unregister(job.clean_up)


if __name__ == "__main__":
    play(step)
