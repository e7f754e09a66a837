"""A scripted clock, scripted steps and an empty registry."""

from collections.abc import Callable

import pytest

from memtools.cleanup import _registry


class ScriptedClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class ScriptedStep:
    """A step that takes scripted time, frees scripted bytes and records its calls."""

    def __init__(self, name, clock, usage, *, frees=0, takes=0.0, min_level=None, does=None):
        from memtools.readings import Level

        self.name = name
        self.min_level = Level.WARNING if min_level is None else min_level
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
    """A `read` function that counts its calls."""

    def __init__(self) -> None:
        self.used_bytes = 1000
        self.reads = 0

    def __call__(self) -> int:
        self.reads += 1
        return self.used_bytes


@pytest.fixture
def clock() -> ScriptedClock:
    """Return a clock that stands still until the test moves it."""
    return ScriptedClock()


@pytest.fixture
def usage() -> ScriptedUsage:
    """Return a `read` of 1,000 bytes."""
    return ScriptedUsage()


@pytest.fixture
def step(clock: ScriptedClock, usage: ScriptedUsage) -> Callable[..., ScriptedStep]:
    """Return a function that makes steps: `step(name, frees=, takes=, min_level=, does=)`."""
    return lambda name, **settings: ScriptedStep(name, clock, usage, **settings)


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a registry of its own."""
    registrations: set[_registry.Registration] = set()
    monkeypatch.setattr(_registry, "_registrations", registrations)
    monkeypatch.setattr(_registry, "_discard", registrations.discard)
