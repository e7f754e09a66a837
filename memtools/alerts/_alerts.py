"""Tell people, and act, when memory is short: the part that services start and stop.

Covers: the configuration, the beginning and the end, forks.
Leaves to others: what happens in between (`_session`).
"""

import asyncio
import atexit
import logging
import os
import random
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from memtools._safe_calls import RateLimitedLogger
from memtools.alerts._actions import Actions, Checking, Cleanup, parse_cleaner
from memtools.alerts._channels import Channel, channels_for
from memtools.alerts._delivery import AlertStatistics, Outbox, Patience, Postman
from memtools.alerts._incidents import Board, Decision, Notify, has_listeners, signals_of
from memtools.alerts._message import plain
from memtools.alerts._rules import AlertRule, listed
from memtools.alerts._transport import Deadline
from memtools.cleanup import Reclaimer
from memtools.errors import ConfigError
from memtools.events import Event, Subscription, subscribe
from memtools.units import parse_count, parse_seconds

# Alerts at work in one process: from the fact that is heard to those who deliver and act.
#
# Covers: judging facts one at a time without ever waiting for anybody.
# Leaves to others: what is open (`_board`), delivering (`_postman`), acting (`_actions`), when all this begins and ends
# (`_alerts`).
#
# Threads: `hear` may be called from any thread, and in a finaliser in the middle of itself. Whoever comes first judges
# what the others bring meanwhile; nobody waits.

_log = logging.getLogger("memtools.alerts")
_PROBLEM_INTERVAL_S: Final = 300.0  # as the monitor repeats its warnings


def _problem_log() -> RateLimitedLogger:
    return RateLimitedLogger(_log, interval_s=_PROBLEM_INTERVAL_S)


class Session:
    """Joins a board to those who carry out what it decides.

    Args:
        board: what is open.
        actions: who acts.
        hire: makes the postman, given the beat that it has to keep.
    """

    def __init__(self, board: Board, actions: Actions, hire: Callable[[Callable[[float], float]], Postman]) -> None:
        self._board = board
        self._actions = actions
        self._postman = hire(self._beat)
        self._heard: deque[Event | None] = deque()
        self._judging = threading.Lock()
        self._count = self._told = 0
        self._next_expiry: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether a thread of this session runs."""
        return self._postman.is_alive or self._actions.is_alive

    def start(self, *, acting: bool) -> None:
        """Start the threads: the postman's, and that for actions if there are any."""
        self._postman.start()
        if acting:
            self._actions.start()

    def hear(self, event: Event) -> None:
        """Take a fact of a kind that alerts are about."""
        self._take(event)

    def ask_to_end(self, deadline: Deadline) -> None:
        """Have the threads end once all is done, or at the deadline."""
        self._actions.ask_to_end()
        self._postman.ask_to_end(deadline)

    def end(self, deadline: Deadline) -> None:
        """Wait for the threads to end, at most until the deadline."""
        self._actions.end(deadline)
        self._postman.end(deadline)

    def statistics(self) -> AlertStatistics:
        """Return how alerts fared."""
        actions = self._actions
        return AlertStatistics(
            open_incidents=self._board.open_incidents,
            received=self._count,
            sent=self._told,
            actions_run=actions.run,
            actions_failed=actions.failed,
            actions_skipped=actions.skipped,
            channels=self._postman.statistics(),
        )

    def _take(self, event: Event | None) -> None:
        self._heard.append(event)
        # Asked again after the lock is given back: somebody may have brought a fact just before.
        while self._heard and self._judging.acquire(blocking=False):
            try:
                while self._heard:
                    self._judge(self._heard.popleft())
            finally:
                self._judging.release()

    def _judge(self, event: Event | None) -> None:
        now = time.monotonic()
        if self._next_expiry is not None and now >= self._next_expiry:
            self._carry_out(self._board.expire(now))
        if event is not None:
            self._count += 1
            for signal in signals_of(event):
                self._carry_out(self._board.feel(signal, now))
        before, self._next_expiry = self._next_expiry, self._board.next_expiry()
        if before is None and self._next_expiry is not None:
            self._postman.wake()

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Notify):
                self._told += 1
                self._postman.post(decision.target, decision.alert)
            else:
                self._actions.post(decision)
                self._postman.wake()  # who looks after it

    def _beat(self, now: float) -> float:
        # Called by the postman between deliveries.
        self._actions.look_after()
        expiry = self._next_expiry
        if expiry is not None and now >= expiry:
            self._take(None)
            expiry = self._next_expiry
        late = self._actions.late_at()
        return min(expiry if expiry is not None else float("inf"), late)


_POLL_S = 0.01  # how often the end of the threads is looked for in an event loop


class Alerts:
    """Hears what memtools finds out, and tells people and acts by a table of rules.

    Works between its start and its end: `with`, `async with`, or `start()` and `stop()`.

    Args:
        rules: the table.
        channels: name to channel; `"log"` is always there, apprise URLs need none.
        monitor: what `immediate_cleanup` asks: a `MemoryMonitor`, which looks and acts at once; a `Reclaimer`, which is
            climbed; something with a method `clean_up`; a callable. Without one, and for rules with thresholds of
            their own, a ladder of the house.
        service: what to call this service in messages; the name of the program by default.
        cooldown: how long a receiver is spared what is no news, in seconds.
        timeout: how long one delivery may take, in seconds.
        action_timeout: how long an action may take, in seconds.
        queue_size: how many messages wait for a channel that does not answer; of more, the oldest go.
        retry_first: the pause after a failure, in seconds; it doubles with each, with jitter.
        retry_most: the longest pause, in seconds; a longer `Retry-After` is honoured, up to an hour.
        give_up_after: the age at which an undelivered message is given up, in seconds.
        drain: how long the end waits for what is not delivered yet, in seconds.

    Raises:
        ConfigError: for values that make no sense.

    Threads: one delivers; one runs actions, if any rule has one. Facts are judged in the thread where they happen, in
    some microseconds, which never waits.
    Forks: a child starts with nothing open and nothing queued, and threads of its own when it has something to tell.
    """

    def __init__(
        self,
        rules: Iterable[AlertRule],
        *,
        channels: Mapping[str, Channel] | None = None,
        monitor: Checking
        | Cleanup
        | Reclaimer
        | Callable[[], Any]
        | None = None,  # Any: what it returns is not looked at
        service: str | None = None,
        cooldown: float = 900.0,
        timeout: float = 10.0,
        action_timeout: float = 30.0,
        queue_size: int = 100,
        retry_first: float = 1.0,
        retry_most: float = 60.0,
        give_up_after: float = 3600.0,
        drain: float = 5.0,
    ) -> None:
        self._rules = _rules(rules)
        self._channels = channels_for(self._rules, channels or {})
        self._clean_up = parse_cleaner(monitor)
        self._service = _service(service)
        self._cooldown_s = parse_seconds(cooldown, name="cooldown")
        self._timeout_s = _positive(timeout, name="timeout")
        self._action_timeout_s = _positive(action_timeout, name="action_timeout")
        self._queue_size = parse_count(queue_size, name="queue_size")
        self._patience = Patience(
            parse_seconds(retry_first, name="retry_first"),
            parse_seconds(retry_most, name="retry_most"),
            parse_seconds(give_up_after, name="give_up_after"),
        )
        self._drain_s = parse_seconds(drain, name="drain")
        self._subscription: Subscription | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._sessions: dict[int, Session] = {}  # of this process and of those it was forked from

    @property
    def is_running(self) -> bool:
        """Whether facts are heard now."""
        return self._subscription is not None

    def start(self) -> None:
        """Open the channels, start the threads and listen; nothing happens when that has been done.

        Raises:
            MissingExtraError: when a rule names an apprise URL and apprise is not installed.
            ConfigError: when apprise cannot read it.
            OSError: when a file of certificates cannot be read.
        """
        if self._subscription is not None:
            return
        self._open_channels()
        self._pid = os.getpid()
        self._loop = _running_loop()
        session = self._make_session()
        self._sessions = {self._pid: session}
        session.start(acting=any(rule.has_action for rule in self._rules))
        atexit.register(self._end_at_exit)
        self._subscription = subscribe(self._hear)

    def stop(self, *, drain: float | None = None) -> None:
        """Listen no more, deliver what waits for at most `drain` seconds, end the threads; says what was left.

        Raises:
            ConfigError: if `drain` is no number of seconds.
        """
        deadline = Deadline(self._drain_s if drain is None else parse_seconds(drain, name="drain"))
        session = self._listen_no_more()
        if session is None:
            return
        session.ask_to_end(deadline)
        session.end(deadline)
        self._close_channels()

    def statistics(self) -> AlertStatistics:
        """Return how alerts fared since the start, in this process; after the end, until the end."""
        return self._session().statistics()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = Deadline(self._drain_s)
        session = self._listen_no_more()
        if session is None:
            return
        session.ask_to_end(deadline)
        try:
            # The loop goes on meanwhile: actions may be coroutines on it.
            while session.is_alive and deadline.left_s:  # noqa: ASYNC110  # what is waited for are threads
                await asyncio.sleep(_POLL_S)
        finally:
            deadline.cut()
            session.end(deadline)
            self._close_channels()

    def __repr__(self) -> str:
        state = "running" if self.is_running else "not running"
        return f"Alerts({len(self._rules)} rules, {', '.join(target.name for target in self._channels)}; {state})"

    def _hear(self, event: Event) -> None:
        if has_listeners(event):
            self._session().hear(event)

    def _session(self) -> Session:
        pid = os.getpid()
        session = self._sessions.get(pid)
        # Made anew in a forked child, at the first fact: its parent's threads are not there, its incidents not its own.
        return session if session is not None else self._sessions.setdefault(pid, self._make_session())

    def _make_session(self) -> Session:
        pid = os.getpid()
        problems = _problem_log()
        board = Board(
            self._rules,
            cooldown_s=self._cooldown_s,
            source=plain(f"{self._service} on {socket.gethostname()} (process {pid})"),
            token=os.urandom(5).hex(),
            wall=time.time,
        )
        actions = Actions(
            self._clean_up,
            self._loop if pid == self._pid else None,
            timeout_s=self._action_timeout_s,
            problems=problems,
        )
        outbox = Outbox(self._channels, size=self._queue_size, patience=self._patience, jitter=_jitter)
        hire = partial(
            Postman,
            self._channels,
            outbox,
            size=self._queue_size,
            timeout_s=self._timeout_s,
            problems=problems,
        )
        return Session(board, actions, lambda beat: hire(beat=beat))

    def _listen_no_more(self) -> Session | None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return None
        subscription.close()
        atexit.unregister(self._end_at_exit)
        return self._session()

    def _open_channels(self) -> None:
        opened: list[Channel] = []
        try:
            for channel in dict.fromkeys(self._channels.values()):
                channel.open()
                opened.append(channel)
        except BaseException:
            _close(opened)
            raise

    def _close_channels(self) -> None:
        _close(dict.fromkeys(self._channels.values()))

    def _end_at_exit(self) -> None:
        # The last chance to tell: what brought the program down may be waiting here.
        warnings.warn(f"{self!r} was never stopped", ResourceWarning, stacklevel=2)
        self.stop()


def _close(channels: Iterable[Channel]) -> None:
    for channel in channels:
        try:
            channel.close()
        except Exception as error:
            _problem_log().warning("close", "A channel of alerts could not be closed: %s", type(error).__name__)


def _rules(value: object) -> tuple[AlertRule, ...]:
    given = listed(value)
    rules = tuple(rule for rule in given if isinstance(rule, AlertRule))
    if not rules or len(rules) < len(given):
        raise ConfigError("rules", value, "AlertRules, one at least")
    return rules


def _service(value: object) -> str:
    if value is None:
        return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    if not isinstance(value, str) or not value.strip():
        raise ConfigError("service", value, "the name of the service, as text")
    return value


def _positive(value: object, *, name: str) -> float:
    seconds = parse_seconds(value, name=name)
    if not seconds:
        raise ConfigError(name, value, "seconds as a number above 0")
    return seconds


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _jitter() -> float:
    return random.uniform(0.8, 1.2)
