"""Coroutine tests that leak bytes, a peak or a task, and the same tests fixed."""

import asyncio

import pytest

kept = []
# MARK


@pytest.mark.memory_growth(max_bytes="1 KiB")
async def test_leaking():
    await asyncio.sleep(0)
    kept.append(bytes(5_000))


@pytest.mark.memory_growth(max_bytes="1 KiB")
async def test_fixed():
    await asyncio.sleep(0)
    bytes(5_000)


@pytest.mark.memory_peak(max_bytes="1 MiB")
async def test_leaking_peak():
    await asyncio.sleep(0)
    rows = bytes(2_000_000)  # noqa: F841  # alive over the next step
    await asyncio.sleep(0)


@pytest.mark.no_leaked_tasks
async def test_leaking_task():
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="price feed"))
    await asyncio.sleep(0)


@pytest.mark.no_leaked_tasks
async def test_fixed_task():
    await asyncio.create_task(asyncio.sleep(0))
