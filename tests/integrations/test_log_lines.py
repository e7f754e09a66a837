"""The memory fields of log records and structlog events."""

import asyncio
import io
import json
import logging
import subprocess
import sys

import pytest
import structlog

from memtools import memory_scope
from memtools.errors import ReadingError
from memtools.integrations import MemoryFilter, add_memory
from memtools.readings import resident_bytes


@pytest.fixture
def stream():
    """The stream to which the logger `tests.log_lines` writes the fields."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(MemoryFilter())
    handler.setFormatter(logging.Formatter("%(message)s|%(rss)s|%(memory_scope)s"))
    logger = logging.getLogger("tests.log_lines")
    logger.addHandler(handler)
    logger.propagate = False
    yield stream
    logger.removeHandler(handler)
    logger.propagate = True


def _lines(stream: io.StringIO) -> list[list[str]]:
    return [line.split("|") for line in stream.getvalue().splitlines()]


def test_log_line_has_the_rss_and_the_current_scope(stream) -> None:
    log = logging.getLogger("tests.log_lines")
    log.warning("outside")
    with memory_scope("import", meter="rss"):
        log.warning("inside")
        with memory_scope("parse", meter="rss"):
            log.warning("deeper")
    log.warning("after")

    assert [(message, scope) for message, _, scope in _lines(stream)] == [
        ("outside", "-"),
        ("inside", "import"),
        ("deeper", "parse"),
        ("after", "-"),
    ]
    assert all(abs(int(rss) - resident_bytes()) < 50_000_000 for _, rss, _ in _lines(stream))


async def test_log_line_of_a_task_has_its_own_scope(stream) -> None:
    log = logging.getLogger("tests.log_lines")

    async def work(name: str) -> None:
        async with memory_scope(name, meter="rss"):
            await asyncio.sleep(0)
            log.warning("%s", name)

    await asyncio.gather(work("a"), work("b"))

    assert [(message, scope) for message, _, scope in _lines(stream)] == [("a", "a"), ("b", "b")]


def test_scope_name_with_line_breaks_stays_on_one_line(stream) -> None:
    with memory_scope("a\nERROR forged\u2028" + "x" * 1000, meter="rss"):
        logging.getLogger("tests.log_lines").warning("inside")

    ((message, _, scope),) = _lines(stream)
    assert message == "inside"
    assert scope.startswith("a\\nERROR forged")
    assert len(scope) < 300


def test_log_line_is_kept_when_rss_cannot_be_read(stream, monkeypatch) -> None:
    def unreadable() -> int:
        raise ReadingError("no descriptor is left")

    monkeypatch.setattr("memtools.integrations.logging.resident_bytes", unreadable)
    logging.getLogger("tests.log_lines").warning("still here")

    assert _lines(stream) == [["still here", "None", "-"]]


def test_filter_with_a_name_passes_only_that_logger() -> None:
    matching, other = (logging.makeLogRecord({"name": name}) for name in ("shop.orders", "lib"))
    memory_filter = MemoryFilter("shop")

    assert (memory_filter.filter(matching), memory_filter.filter(other)) == (True, False)
    assert matching.rss > 0


def test_structlog_event_has_the_same_fields() -> None:
    stream = io.StringIO()
    log = structlog.wrap_logger(
        structlog.PrintLogger(stream), processors=[add_memory, structlog.processors.JSONRenderer()]
    )

    with memory_scope("import", meter="rss"):
        log.info("started", rows=3)

    event = json.loads(stream.getvalue())
    assert (event["event"], event["rows"], event["memory_scope"]) == ("started", 3, "import")
    assert abs(event["rss"] - resident_bytes()) < 50_000_000


def test_existing_event_fields_are_kept() -> None:
    assert add_memory(None, "info", {"rss": "mine"})["rss"] == "mine"


def test_importing_integrations_imports_no_framework() -> None:
    program = (
        "import sys, memtools.integrations\n"
        "print([name for name in ('structlog', 'starlette', 'fastapi') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[]\n"
