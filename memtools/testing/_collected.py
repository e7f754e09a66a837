"""Objects that must be gone when a test has ended.

Covers: holding them weakly, collecting, the error that names who keeps them.
Leaves to others: the climb to the root (`memtools.heap`), the fixture (`pytest_memtools`).
"""

import gc
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from memtools.errors import ConfigError, LeakError
from memtools.heap import why_alive

T = TypeVar("T")


class Collected:
    """What must be gone at the end."""

    def __init__(self) -> None:
        self._expected: list[tuple[str, Callable[[], Any]]] = []

    def __call__(self, thing: T) -> T:
        """Expect `thing` to be gone when the test has ended; return it.

        Raises:
            ConfigError: if it cannot be weakly referenced.
        """
        try:
            self._expected.append((type(thing).__qualname__, weakref.ref(thing)))
        except TypeError:
            accepted = "an object that can be weakly referenced (with slots: name `__weakref__` among them)"
            raise ConfigError("thing", thing, accepted) from None
        return thing

    def check(self) -> None:
        """Collect, and say who keeps what is left.

        Raises:
            LeakError: one line for each object that is alive, with who keeps it.
        """
        gc.collect()
        lines = [str(why_alive(thing)).splitlines()[0] for _, held in self._expected if (thing := held()) is not None]
        thing = None
        self._expected.clear()
        if lines:
            raise LeakError("what was expected to be collected", tuple(lines))
