"""The top-level namespace: what can be imported, and what a wrong guess is told."""

import importlib
import re

import pytest

import memtools


def test_version_is_that_of_the_distribution() -> None:
    assert re.match(r"\d+(\.\d+)*|0\+source", memtools.__version__)
    assert "__version__" in dir(memtools)


@pytest.mark.parametrize("name", ["Alerts", "AlertRule", "MemoryMiddleware", "report"])
def test_name_of_another_package_is_loaded_when_asked_for(name: str) -> None:
    assert getattr(memtools, name) is getattr(memtools, name)
    assert name in dir(memtools)


def test_wrong_import_names_the_right_one() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'profile' from 'memtools'; use profile_memory"):
        from memtools import profile  # noqa: F401  # does not exist


def test_wrong_attribute_names_the_right_one() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Monitor'; use MemoryMonitor"):
        _ = memtools.Monitor


def test_wrong_name_without_a_guess_is_an_ordinary_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'frobnicate'"):
        from memtools import frobnicate  # noqa: F401  # does not exist

    assert not hasattr(memtools, "profile")
    assert not hasattr(memtools, "frobnicate")


def test_every_suggestion_exists() -> None:
    lazy = importlib.import_module("memtools._lazy")
    for suggestion in lazy._GUESSES.values():
        for name in suggestion.split(", or "):
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module or "memtools"), attribute), name


def test_no_guess_hides_a_name_that_exists() -> None:
    lazy = importlib.import_module("memtools._lazy")

    assert not set(lazy._GUESSES) & set(memtools.__all__)
