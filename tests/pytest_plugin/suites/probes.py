"""Tests that measure parts of themselves."""

import asyncio


def test_parts(memory_probe):
    with memory_probe("load") as scope:
        rows = bytes(1_000_000)  # noqa: F841  # alive until the test ends
    assert scope.usage.retained_bytes > 900_000
    with memory_probe("index"):
        pass


async def test_parts_of_a_coroutine(memory_probe):
    async with memory_probe("fetch"):
        await asyncio.sleep(0)
