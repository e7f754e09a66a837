"""A service that leaks 100 MB into a list that can be shortened warns, cleans up, and is normal again."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed here")

pytestmark = pytest.mark.once

SERVICE = Path(__file__).with_name("leaking_service.py")
ORDER = {"lines": [{"id": number, "price": number * 1.5, "count": 3} for number in range(50)]}
LEAKED_BYTES, LEFT_BYTES = 100_000_000, 100_000
TIMEOUT_S = 90


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of the service, which runs in a process of its own; it has to end without a warning."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "32768", "PYTHONWARNINGS": "always::ResourceWarning"}
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(SERVICE), "watched"], stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.terminate()
        process.communicate(timeout=30)
    assert "Traceback" not in log.read_text()
    assert "ResourceWarning" not in log.read_text()


async def _orders(client: httpx.AsyncClient, count: int) -> set[int]:
    return {(await client.post("/orders", json=ORDER)).status_code for _ in range(count)}


@pytest.mark.skipif(sys.platform != "linux", reason="how freed blocks go back to the system is the C library's affair")
async def test_leaking_service_warns_frees_and_fails_no_request(address: str) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        each = LEAKED_BYTES // LEFT_BYTES // 4

        statuses = set().union(*await asyncio.gather(*(_orders(client, each) for _ in range(4))))
        deadline = time.monotonic() + TIMEOUT_S
        while (state := (await client.get("/state")).json())["level"] != "NORMAL" and time.monotonic() < deadline:
            statuses |= await _orders(client, 1)
            await asyncio.sleep(0.2)

    assert statuses == {200}
    assert state["changes"]["WARNING"] >= 1
    assert state["cleanups"] >= 1
    assert state["freed"] > 40_000_000
    assert state["level"] == "NORMAL"
    assert state["changes"]["CRITICAL"] == 0
