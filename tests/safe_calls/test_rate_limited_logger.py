"""The rate-limited logger: one message per key and interval, and no exception ever."""

import logging
import threading
from collections.abc import Iterator

import pytest

from memtools._safe_calls import RateLimitedLogger


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> logging.Logger:
    caplog.set_level(logging.DEBUG, logger="test.safe_calls")
    return logging.getLogger("test.safe_calls")


@pytest.fixture
def limited(log: logging.Logger, clock: Clock) -> RateLimitedLogger:
    return RateLimitedLogger(log, interval_s=60.0, clock=clock)


def test_problem_is_logged_once_per_interval(
    limited: RateLimitedLogger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    results = [limited.warning("disk", "disk %s is full", "sda") for _ in range(3)]
    clock.now = 59.9
    results.append(limited.warning("disk", "disk %s is full", "sda"))

    assert results == [True, False, False, False]
    assert caplog.messages == ["disk sda is full"]


def test_next_message_counts_the_suppressed_ones(
    limited: RateLimitedLogger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(4):
        limited.warning("disk", "full")
    clock.now = 60.0
    limited.warning("disk", "full")
    clock.now = 120.0
    limited.warning("disk", "full")

    assert caplog.messages == ["full", "full (3 more since the last such message)", "full"]


def test_keys_are_limited_separately(limited: RateLimitedLogger, caplog: pytest.LogCaptureFixture) -> None:
    limited.warning("first", "one")
    limited.warning("second", "two")

    assert caplog.messages == ["one", "two"]


def test_error_has_the_traceback_of_the_handled_exception(
    limited: RateLimitedLogger, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise ValueError("handled")
    except ValueError:
        limited.error("hook", "hook failed")

    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "handled"


def test_error_has_the_traceback_of_the_given_exception(
    limited: RateLimitedLogger, caplog: pytest.LogCaptureFixture
) -> None:
    limited.error("hook", "hook failed", error=ValueError("given"))

    assert caplog.records[0].exc_info is not None
    assert str(caplog.records[0].exc_info[1]) == "given"


def test_warning_has_no_traceback_of_the_handled_exception(
    limited: RateLimitedLogger, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise ValueError
    except ValueError:
        limited.warning("hook", "late")

    assert not caplog.records[0].exc_info


def test_resolved_is_logged_only_after_a_problem(limited: RateLimitedLogger, caplog: pytest.LogCaptureFixture) -> None:
    limited.resolved("disk", "disk is fine")
    assert caplog.messages == []

    limited.warning("disk", "disk is full")
    limited.resolved("disk", "disk is fine")
    limited.resolved("disk", "disk is fine")

    assert caplog.messages == ["disk is full", "disk is fine"]


def test_problem_after_resolved_is_logged_at_once(limited: RateLimitedLogger, caplog: pytest.LogCaptureFixture) -> None:
    limited.warning("disk", "full")
    limited.resolved("disk", "fine")

    assert limited.warning("disk", "full")
    assert caplog.messages == ["full", "fine", "full"]


class BrokenHandler(logging.Handler):
    """A handler that raises instead of calling `handleError`."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.calls = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.calls += 1
        raise self.error


@pytest.fixture(
    params=[RuntimeError("no"), MemoryError(), OSError("disk full")], ids=lambda error: type(error).__name__
)
def broken_handler(request: pytest.FixtureRequest, log: logging.Logger) -> Iterator[BrokenHandler]:
    handler = BrokenHandler(request.param)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def test_exception_of_a_logging_handler_is_not_raised(
    limited: RateLimitedLogger, broken_handler: BrokenHandler
) -> None:
    assert not limited.error("hook", "hook failed")
    assert not limited.warning("other", "hook failed")
    limited.resolved("hook", "hook works")

    assert broken_handler.calls == 3


def test_argument_whose_str_raises_is_not_raised(limited: RateLimitedLogger, log: logging.Logger) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise ZeroDivisionError

    handler = BrokenHandler(ZeroDivisionError())
    handler.emit = lambda record: handler.calls.__add__(len(record.getMessage()))  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        assert not limited.warning("hook", "%s failed", Unprintable())
    finally:
        log.removeHandler(handler)


def test_clock_that_raises_is_not_raised(log: logging.Logger) -> None:
    def broken_clock() -> float:
        raise OSError("no clock")

    assert not RateLimitedLogger(log, clock=broken_clock).error("hook", "hook failed")


def test_reports_of_many_threads_are_all_logged_or_counted(
    limited: RateLimitedLogger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Barrier(4)
    logged: list[bool] = []

    def report() -> None:
        start.wait(10)
        logged.extend(limited.warning("disk", "full") for _ in range(100))

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(logged) == 400
    assert 1 <= sum(logged) <= 4
    assert len(caplog.messages) == sum(logged)
