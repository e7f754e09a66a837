"""Each job adds a handler with a buffer of its own to the same logger."""

import logging
import logging.handlers

from _shape import play

VERDICT = "python"
OWNER = r"Logger\.handlers|Logger.*handlers"

logger = logging.getLogger("leak.jobs")
logger.propagate = False


def run_job(leaks: bool) -> None:
    handler = logging.handlers.MemoryHandler(capacity=1_000)
    handler.buffer.append(logging.LogRecord("leak", logging.INFO, __file__, 1, "x" * 20_000, (), None))
    logger.addHandler(handler)
    if not leaks:
        logger.removeHandler(handler)
        handler.close()


def step(leaks: bool) -> None:
    run_job(leaks)
    run_job(leaks)


if __name__ == "__main__":
    play(step)
