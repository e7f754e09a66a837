"""Types of stress tests; checked by mypy and pyright, never run."""

import asyncio
from typing import assert_type

from memtools.testing import StressReport, StressTest


def plain(size: int) -> bytes:
    return bytes(size)


async def coroutine(size: int) -> bytes:
    await asyncio.sleep(0)
    return bytes(size)


async def check() -> None:
    assert_type(StressTest(plain, args=(1,), rounds=3).run(), StressReport)
    assert_type(await StressTest(coroutine, args=(1,), concurrency=4).run(), StressReport)
    StressTest(plain, round=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
