"""A fixture of the module lives through all runs of a measured test."""

import pytest

made = []


@pytest.fixture(scope="module")
def server():
    made.append("module")
    yield
    made.append("module ended")


@pytest.fixture
def client(server):
    made.append("function")
    yield
    made.pop()


@pytest.mark.memory_growth
@pytest.mark.parametrize("number", [1, 2])
def test_uses_both(client, number):
    assert made == ["module", "function"]


def test_afterwards(server):
    assert made == ["module"]
