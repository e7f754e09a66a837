"""Tell any of the hundred services that apprise knows: the door to that library.

Leaves to others: what it costs, 22 MiB of memory, hence the extra: `pip install 'memtools[alerts]'`.

Traps of apprise: a URL that it cannot read is refused by a False, and so is a message that did not arrive; nothing is
raised. It logs a URL that it cannot read, and, as debugging, the path of every request, token included: hence the
filter while it is at work for us.
"""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from memtools.alerts._delivery import Deadline, DeliveryFailed
from memtools.alerts._message import Alert, AlertKind, lines_of, subject_of
from memtools.alerts._rules import Secret, parse_secret, unshown
from memtools.errors import ConfigError, MissingExtraError
from memtools.readings import Level

_TALKERS: Final = ("apprise", "urllib3.connectionpool")


class AppriseChannel:
    """Hands alerts to apprise.

    Args:
        url: one URL as apprise reads them; it holds tokens, so it is never shown.

    Raises:
        ConfigError: for what is no text.
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
            # By its name: to some tools `import apprise` would mean this very file.
            apprise: Any = import_module("apprise")
        except ImportError:
            raise MissingExtraError("apprise", "alerts") from None
        messenger: Any = apprise.Apprise()
        with _hushed(logging.CRITICAL + 1):
            added = messenger.add(self._url.reveal())
        if not added:
            raise ConfigError("url", unshown(), "a URL that apprise can read: see its list of services")
        self._apprise = messenger

    def send(self, alert: Alert, deadline: Deadline, /) -> None:
        """Hand `alert` over.

        Raises:
            DeliveryFailed: when apprise says no more than that it did not arrive.
        """
        if self._apprise is None:
            self.open()
        body = "\n".join(f"{label}: {text}" for label, text in lines_of(alert))
        with _hushed(logging.WARNING):
            arrived = _finish(self._notify(alert, body), deadline.remaining_or_raise())
        if not arrived:
            raise DeliveryFailed("apprise says that it did not arrive")

    def close(self) -> None:
        """Let go of apprise."""
        self._apprise = None

    def __repr__(self) -> str:
        return "AppriseChannel(url=<hidden>)"

    async def _notify(self, alert: Alert, body: str) -> bool:
        # `bool` of what comes back; its `status` is not what its name says.
        return bool(
            await self._apprise.async_notify(
                title=subject_of(alert), body=body, notify_type=_kind_of(alert), body_format="text"
            )
        )


@contextmanager
def _hushed(least: int) -> Generator[None, None, None]:
    # Nothing below `least` from those that log addresses. Apprise works in threads of its own, so the filter cannot ask
    # for whom.
    def is_loud(record: logging.LogRecord) -> bool:
        return record.levelno >= least

    loggers = [logging.getLogger(name) for name in _TALKERS]
    for logger in loggers:
        logger.addFilter(is_loud)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_loud)


def _kind_of(alert: Alert) -> str:
    if alert.kind is AlertKind.RESOLVED:
        return "success"
    return "failure" if alert.level is Level.CRITICAL else "warning"


def _finish(waiting: Any, seconds: float) -> bool:
    # Not `asyncio.run`: it waits for the threads of its executor, and apprise may be stuck in one. They end by the
    # timeouts that apprise has of its own.
    loop = asyncio.new_event_loop()
    try:
        return bool(loop.run_until_complete(asyncio.wait_for(waiting, seconds)))
    finally:
        loop.close()
