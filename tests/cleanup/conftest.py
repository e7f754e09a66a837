"""A clock that tests script, and a register with nothing of anybody else's on it."""

from collections.abc import Callable

import pytest

from memtools.cleanup import _registry


class ScriptedClock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class ScriptedStep:
    """A step that takes some time, gives some bytes and remembers how it was called."""

    def __init__(self, name, clock, usage, *, frees=0, takes=0.0, least=None, does=None):
        from memtools.readings import Level

        self.name = name
        self.least = Level.WARNING if least is None else least
        self._clock = clock
        self._usage = usage
        self._frees = frees
        self._takes = takes
        self.does = does
        self.calls = []

    def __call__(self, level, deadline):
        self.calls.append((level, deadline))
        self._clock.advance(self._takes)
        if self.does is not None:
            self.does()
        self._usage.used_bytes -= self._frees
        return self._frees


class ScriptedUsage:
    """What is in use."""

    def __init__(self) -> None:
        self.used_bytes = 1000
        self.reads = 0

    def __call__(self) -> int:
        self.reads += 1
        return self.used_bytes


@pytest.fixture
def clock() -> ScriptedClock:
    """Return a clock that stands until it is moved."""
    return ScriptedClock()


@pytest.fixture
def usage() -> ScriptedUsage:
    """Return a `read` of 1,000 bytes."""
    return ScriptedUsage()


@pytest.fixture
def step(clock: ScriptedClock, usage: ScriptedUsage) -> Callable[..., ScriptedStep]:
    """Return a maker of steps: `step(name, frees=, takes=, least=, does=)`."""
    return lambda name, **settings: ScriptedStep(name, clock, usage, **settings)


@pytest.fixture
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a register of its own."""
    places: set[_registry.Place] = set()
    monkeypatch.setattr(_registry, "_places", places)
    monkeypatch.setattr(_registry, "_give_up", places.discard)
