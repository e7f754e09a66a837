"""Tests that leak or keep an object, and the same tests fixed."""

import asyncio
import os

import pytest

kept = []


@pytest.fixture
def connection():
    kept.append(bytes(5_000))
    yield kept[-1]  # noqa: PT022  # what is missing is the clean-up


@pytest.fixture
def closed_connection():
    kept.append(bytes(5_000))
    yield kept[-1]
    kept.pop()


@pytest.mark.memory_growth(max_bytes="100 B")
def test_leaking_200_bytes():
    kept.append(bytes(200))


@pytest.mark.memory_growth(max_bytes="100 B")
def test_fixed_200_bytes():
    assert len([bytes(200)]) == 1


@pytest.mark.memory_growth
def test_leaking_64_kib():
    kept.append(bytes(65_536))


@pytest.mark.memory_growth
def test_fixed_64_kib():
    bytes(65_536)


@pytest.mark.memory_growth
def test_leaking_fixture(connection):
    assert connection


@pytest.mark.memory_growth
def test_fixed_fixture(closed_connection):
    assert closed_connection


@pytest.mark.memory_growth
def test_leaking_descriptor():
    os.open(os.devnull, os.O_RDONLY)


@pytest.mark.memory_growth
def test_fixed_descriptor():
    os.close(os.open(os.devnull, os.O_RDONLY))


@pytest.mark.memory_growth
def test_fixed_with_output():
    print("x" * 10_000)


@pytest.mark.memory_growth
def test_fixed_asyncio_run():
    asyncio.run(asyncio.sleep(0))
