"""A warning with a new text each time: the module's registry remembers every one."""

import warnings
from itertools import count

from _shape import play

VERDICT = "python"
OWNER = r"__warningregistry__"

numbers = count()
warnings.simplefilter("default")
warnings.showwarning = lambda *_, **__: None  # they are not to be printed


def step(leaks: bool) -> None:
    for _ in range(60):
        number = next(numbers)
        warnings.warn(f"order {number} is late" if leaks else "an order is late", UserWarning, stacklevel=1)


if __name__ == "__main__":
    play(step)
