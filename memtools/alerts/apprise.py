"""Channel for the services of the library apprise (extra `alerts`).

Traps of apprise: it costs 22 MiB of memory, hence the extra. It returns False for a URL that it cannot read and for a
message that did not arrive, and raises nothing. It logs a URL that it cannot read, and, as debugging, the path of every
request, token included: hence the filter while it works for this channel.
"""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from memtools.alerts._message import Alert, AlertKind, detail_lines, subject
from memtools.alerts._protocol import Deadline
from memtools.alerts._rules import Secret, hidden, parse_secret
from memtools.errors import ConfigError, DeliveryFailed, MissingExtraError
from memtools.readings import Level

_LOGGERS: Final = ("apprise", "urllib3.connectionpool")


class AppriseChannel:
    """Sends alerts by apprise.

    Args:
        url: one URL as apprise reads them; it holds tokens, so it is never shown.

    Raises:
        ConfigError: for anything but text.
    """

    def __init__(self, url: str) -> None:
        secret = parse_secret(url, name="url")
        if secret is None:
            raise ConfigError("url", None, "an apprise URL")
        self._url: Secret = secret
        self._apprise: Any = None  # apprise has no types of its own

    def open(self) -> None:
        """Import apprise and have it read the URL.

        Raises:
            MissingExtraError: when it is not installed.
            ConfigError: when it cannot read the URL, which is not shown.
        """
        try:
            # By its name: some tools would take `import apprise` for this file.
            apprise: Any = import_module("apprise")
        except ImportError:
            raise MissingExtraError("apprise", "alerts") from None
        client: Any = apprise.Apprise()
        with _quiet_loggers(logging.CRITICAL + 1):
            added = client.add(self._url.reveal())
        if not added:
            raise ConfigError("url", hidden(), "a URL that apprise can read: see its list of services")
        self._apprise = client

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        """Send `alert`.

        Raises:
            DeliveryFailed: when apprise reports that it did not arrive; it gives no reason.
        """
        if self._apprise is None:
            self.open()
        body = "\n".join(f"{label}: {text}" for label, text in detail_lines(alert))
        with _quiet_loggers(logging.WARNING):
            arrived = _run_with_timeout(self._notify(alert, body), deadline.remaining_or_raise())
        if not arrived:
            raise DeliveryFailed("apprise reports that it did not arrive")

    def close(self) -> None:
        """Release apprise."""
        self._apprise = None

    def __repr__(self) -> str:
        return "AppriseChannel(url=<hidden>)"

    async def _notify(self, alert: Alert, body: str) -> bool:
        # `bool` of the result; its `status` is not what its name says.
        return bool(
            await self._apprise.async_notify(
                title=subject(alert), body=body, notify_type=_notify_type(alert), body_format="text"
            )
        )


@contextmanager
def _quiet_loggers(level: int) -> Generator[None, None, None]:
    """Filter out what the loggers that show addresses log below `level`, whichever thread logs it.

    Apprise works in threads of its own, so the filter cannot tell its calls from those of the program.
    """

    def is_severe(record: logging.LogRecord) -> bool:
        return record.levelno >= level

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(is_severe)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_severe)


def _notify_type(alert: Alert) -> str:
    if alert.kind is AlertKind.RESOLVED:
        return "success"
    return "failure" if alert.level is Level.CRITICAL else "warning"


def _run_with_timeout(call: Any, seconds: float) -> bool:
    # Not `asyncio.run`: it waits for the threads of its executor, and apprise may hang in one, up to its own timeouts.
    loop = asyncio.new_event_loop()
    try:
        return bool(loop.run_until_complete(asyncio.wait_for(call, seconds)))
    finally:
        loop.close()
