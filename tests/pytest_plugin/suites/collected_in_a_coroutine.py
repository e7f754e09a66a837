"""A coroutine test whose object is collected at its end."""

import asyncio


class Service: ...


async def test_collected(assert_collected):
    service = assert_collected(Service())
    await asyncio.sleep(0)
    assert service
