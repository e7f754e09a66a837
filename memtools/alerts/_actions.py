"""Run the actions of rules in a thread of their own, so that one that blocks or breaks harms nobody.

Covers: what they raise, how long they take, coroutines on the loop of the service, the breaker.
Leaves to others: when they run (`_board`).

A thread cannot be ended from outside: one whose action takes too long is left to it, and another goes on with the rest.
That rule is not run again until its action has come back, so there is at most one such thread per rule.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

from memtools._safe_calls import RateLimitedLogger
from memtools.alerts._delivery import Deadline
from memtools.alerts._incidents import Act, exit_bytes
from memtools.alerts._rules import AlertRule
from memtools.cleanup import Reclaimer, default_steps
from memtools.errors import ConfigError
from memtools.readings import effective_limit, resident_bytes

# What `immediate_cleanup` does: it asks a monitor, a ladder, or whatever gives memory back.
#
# Leaves to others: when it is asked (`_actions`), the steps (`memtools.cleanup`).

# Any: what it returns is not looked at, unless it can be awaited.
CleanUp: TypeAlias = Callable[[AlertRule], Any]


@runtime_checkable
class Cleanup(Protocol):
    """Something of your own that gives memory back when asked; `clean_up` may be a coroutine function."""

    def clean_up(self) -> Any:  # Any: as above
        """Give memory back now."""
        ...


@runtime_checkable
class Checking(Protocol):
    """A `MemoryMonitor`, as far as alerts know it."""

    def check(self) -> Any:  # Any: as above
        """Look at memory now, and act by its own thresholds."""
        ...


def parse_cleaner(value: object) -> CleanUp:
    """Return what cleans up for a rule.

    Raises:
        ConfigError: for what is no monitor, ladder, cleaner or callable.
    """
    if value is None:
        return _by_ladder(Reclaimer(default_steps(), read=resident_bytes))
    if isinstance(value, Reclaimer):
        return _by_ladder(value)
    if isinstance(value, Cleanup):
        clean_up = value.clean_up
        return lambda _: clean_up()
    if isinstance(value, Checking):
        return _by_monitor(value)
    if callable(value):
        return lambda _: value()
    accepted = "a MemoryMonitor, a Reclaimer, something with a method clean_up, or a callable"
    raise ConfigError("monitor", value, accepted)


def _by_monitor(monitor: Checking) -> CleanUp:
    ladder = Reclaimer(default_steps(), read=resident_bytes)

    def clean_up(rule: AlertRule) -> Any:  # Any: as above
        # The monitor acts by its own thresholds, which may stand above the rule's.
        return ladder.reclaim(rule.level, _target_bytes(rule)) if rule.is_thresholded else monitor.check()

    return clean_up


def _by_ladder(ladder: Reclaimer) -> CleanUp:
    return lambda rule: ladder.reclaim(rule.level, _target_bytes(rule))


def _target_bytes(rule: AlertRule) -> int:
    # Without a threshold of its own: 0, which is never reached, hence all steps of the level.
    limit_bytes = effective_limit().value_bytes
    entry_bytes = rule.entry_bytes(limit_bytes)
    return 0 if entry_bytes is None else exit_bytes(entry_bytes, limit_bytes)


BREAKER_AFTER: Final = 5  # failures in a row; as callbacks of the monitor
QUEUED_AT_MOST: Final = 100  # as messages for a channel


class Actions:
    """The thread that runs actions, started when the first one is due or by `start`.

    Args:
        clean_up: what `immediate_cleanup` calls.
        loop: where coroutines run; None for a loop of their own.
        timeout_s: how long an action may take.
        problems: where failures are said.
    """

    def __init__(
        self,
        clean_up: CleanUp,
        loop: asyncio.AbstractEventLoop | None,
        *,
        timeout_s: float,
        problems: RateLimitedLogger,
    ) -> None:
        self._clean_up = clean_up
        self._loop = loop
        self._timeout_s = timeout_s
        self._problems = problems
        self._queue: SimpleQueue[Act | None] = SimpleQueue()
        self._hand: _Hand | None = None
        self._stuck: set[AlertRule] = set()  # those whose action takes too long and has not come back
        self._in_a_row: dict[AlertRule, int] = {}
        self._ended = False
        self.run = self.failed = self.skipped = 0

    @property
    def is_alive(self) -> bool:
        """Whether a thread runs that will go on to the next action."""
        return self._hand is not None and self._hand.thread.is_alive()

    def post(self, act: Act) -> None:
        """Have an action run soon; never waits."""
        if not self._may_run(act.rule) or self._queue.qsize() >= QUEUED_AT_MOST:
            self.skipped += 1
            return
        self._queue.put(act)
        self.start()

    def start(self) -> None:
        """Have a thread that is free; where none can be started, the next action tries again."""
        hand = self._hand
        if self._ended or (self.is_alive and hand is not None and not hand.reported):
            return
        fresh = _Hand()
        fresh.thread = threading.Thread(target=self._work, args=(fresh,), name="memtools-alerts-actions", daemon=True)
        self._hand = fresh  # before it starts: it looks whether it is the one
        try:
            fresh.thread.start()
        except (RuntimeError, MemoryError):
            self._hand = hand
            self._problems.warning("thread", "No thread can be started for the actions of alerts: they wait")

    def look_after(self) -> None:
        """Notice an action that takes too long: say so, and have another thread go on with the rest."""
        hand = self._hand
        rule = None if hand is None else hand.rule
        if hand is not None and rule is not None and hand.is_late(self._timeout_s) and not hand.reported:
            hand.reported = True
            self._stuck.add(rule)
            self._note_failure(rule, f"has not come back after {self._timeout_s:g} s", None)
        if not self._queue.empty():
            self.start()

    def late_at(self) -> float:
        """Return when to look after the action that runs now; infinite when none runs."""
        hand = self._hand
        if hand is None or hand.reported or (hand.rule is None and self._queue.empty()):
            return float("inf")
        # One that has been posted and not begun is looked after in time if this is asked again when it may be late.
        return min(hand.late_at(self._timeout_s), time.monotonic() + self._timeout_s)

    def ask_to_end(self) -> None:
        """Have the thread end once what is queued has run."""
        self._queue.put(None)

    def end(self, deadline: Deadline) -> None:
        """Wait for the thread, at most until the deadline; what has not run by then is skipped."""
        hand = self._hand
        if hand is None:
            return
        if hand.thread is not threading.current_thread() and hand.thread.is_alive():
            hand.thread.join(deadline.left_s)
        self._ended = True
        if hand.thread.is_alive():
            if hand.future is not None:
                hand.future.cancel()
                hand.thread.join(min(self._timeout_s, 1.0))
            rule = hand.rule
            if hand.thread.is_alive() and rule is not None:
                words = "Alerts stopped while action %s was running; its thread was abandoned"
                self._problems.warning("end", words, rule.action_name)

    def _work(self, hand: "_Hand") -> None:
        while self._hand is hand and not self._ended:
            act = self._queue.get()
            if act is None:
                if self._hand is not hand:
                    self._queue.put(None)  # it was meant for the one that took over
                return
            if not self._may_run(act.rule):
                self.skipped += 1
                continue
            hand.begin(act.rule)
            try:
                self._run(act, hand)
            finally:
                hand.rest()
                self._stuck.discard(act.rule)

    def _run(self, act: Act, hand: "_Hand") -> None:
        rule = act.rule
        try:
            outcome: Any = self._call(act)
            if isinstance(outcome, Awaitable):
                self._wait_for(cast("Awaitable[object]", outcome), hand)
        except BaseException as error:  # this thread is nobody's: there is no one to pass it on to
            self._note_failure(rule, f"failed ({type(error).__name__})", error)
            return
        if not hand.reported:  # as too late: then it counts as failed, though it came back in the end
            self.run += 1
            self._in_a_row[rule] = 0

    def _may_run(self, rule: AlertRule) -> bool:
        return rule not in self._stuck and self._in_a_row.get(rule, 0) < BREAKER_AFTER

    def _call(self, act: Act) -> object:
        action = act.rule.action
        if callable(action):
            return action(act.alert)
        return self._clean_up(act.rule)

    def _wait_for(self, outcome: Awaitable[object], hand: "_Hand") -> None:
        waiting = _bounded(outcome, self._timeout_s)
        if self._loop is None:
            asyncio.run(waiting)
            return
        if not self._loop.is_running():
            waiting.close()
            if asyncio.iscoroutine(outcome):
                outcome.close()
            raise RuntimeError("the event loop in which alerts were started has ended")
        hand.future = asyncio.run_coroutine_threadsafe(waiting, self._loop)
        try:
            # The loop itself may be blocked, or end, before it comes to cancel what takes too long.
            hand.future.result(self._timeout_s + min(self._timeout_s, 1.0))
        finally:
            hand.future.cancel()
            hand.future = None

    def _note_failure(self, rule: AlertRule, words: str, error: BaseException | None) -> None:
        self.failed += 1
        failures = self._in_a_row[rule] = self._in_a_row.get(rule, 0) + 1
        if failures == BREAKER_AFTER:
            said = "The action %s of alerts %s, %d times in a row: it is not run any more"
            self._problems.warning(f"breaker {id(rule)}", said, rule.action_name, words, failures, error=error)
        else:
            said = "The action %s of alerts %s; the service goes on"
            self._problems.warning(f"action {id(rule)}", said, rule.action_name, words, error=error)


class _Hand:
    """A thread that runs actions, and what it is at."""

    thread: threading.Thread

    def __init__(self) -> None:
        self.rule: AlertRule | None = None
        self.future: Any = None  # of whatever the action returned
        self.reported = False
        self._since = 0.0

    def begin(self, rule: AlertRule) -> None:
        self._since, self.reported, self.rule = time.monotonic(), False, rule

    def rest(self) -> None:
        self.rule = None

    def late_at(self, timeout_s: float) -> float:
        # A coroutine is ended by its own timeout: it is given a moment for that.
        return float("inf") if self.rule is None else self._since + timeout_s + min(timeout_s, 2.0)

    def is_late(self, timeout_s: float) -> bool:
        return time.monotonic() > self.late_at(timeout_s)


async def _bounded(outcome: Awaitable[object], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        await outcome
