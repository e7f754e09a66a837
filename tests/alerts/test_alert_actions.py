"""Actions that raise, block, are cancelled or call alerts: the service goes on and the next action runs."""

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from memtools.alerts import Alert, AlertRule, Alerts
from memtools.cleanup import Reclaimer, default_steps, register
from memtools.events import BudgetOverrun, Event, LevelChanged, TaskAbandoned, emit, subscribe
from memtools.readings import Level

Wait = Callable[[Callable[[], object]], None]
Change = Callable[[Level], LevelChanged]


def overrun(name: str) -> BudgetOverrun:
    return BudgetOverrun(name, "call", 2, 1, "peak", in_flight=False)


def ended(alerts: Alerts) -> int:
    figures = alerts.statistics()
    return figures.actions_run + figures.actions_failed + figures.actions_skipped


def do_nothing(alert: Alert) -> None:
    """An action without an effect."""


def test_action_gets_the_alert_in_its_own_thread(change: Change, wait_until: Wait) -> None:
    got: list[tuple[Alert, str]] = []
    rule = AlertRule("critical", action=lambda alert: got.append((alert, threading.current_thread().name)))

    with Alerts([rule]) as alerts:
        emit(change(Level.CRITICAL))
        wait_until(lambda: got)

    assert got[0][0].level is Level.CRITICAL
    assert got[0][1] == "memtools-alerts-actions"
    assert (alerts.statistics().actions_run, alerts.statistics().actions_failed) == (1, 0)


class Monitor:
    """A monitor, as far as alerts use it."""

    checks = 0

    def check(self) -> None:
        self.checks += 1


class AsyncCleanup:
    """An object of the program that gives memory back."""

    calls = 0

    async def clean_up(self) -> None:
        self.calls += 1


def test_immediate_cleanup_calls_what_was_passed_as_monitor(change: Change, wait_until: Wait) -> None:
    monitor, cleanup, calls = Monitor(), AsyncCleanup(), list[str]()
    rule = AlertRule("critical", action="immediate_cleanup")

    with (
        Alerts([rule], monitor=monitor),
        Alerts([rule], monitor=cleanup),
        Alerts([rule], monitor=lambda: calls.append("called")),
    ):
        emit(change(Level.CRITICAL))
        wait_until(lambda: monitor.checks and cleanup.calls and calls)

    assert (monitor.checks, cleanup.calls, calls) == (1, 1, ["called"])


class Shrinking:
    """A shrinkable that records the level of its call."""

    called_at: Level | None = None

    def shrink(self, level: Level, deadline: float, /) -> int:
        self.called_at = level
        return 0


@pytest.mark.parametrize(
    ("threshold", "monitor"),
    [(None, None), (None, Reclaimer(default_steps(), read=lambda: 1000)), (1, None), ("0%", Monitor())],
    ids=["default", "reclaimer", "size", "share, with a monitor"],
)
def test_immediate_cleanup_runs_a_reclaim_pass(
    change: Change, wait_until: Wait, threshold: str | int | None, monitor: Reclaimer | Monitor | None
) -> None:
    shrinkable = Shrinking()
    register(shrinkable)

    with Alerts([AlertRule("critical", threshold, action="immediate_cleanup")], monitor=monitor):
        emit(change(Level.CRITICAL))
        wait_until(lambda: shrinkable.called_at)

    assert shrinkable.called_at is Level.CRITICAL


def test_immediate_cleanup_stops_below_the_threshold_of_its_rule(change: Change, wait_until: Wait) -> None:
    shrinkable = Shrinking()
    register(shrinkable)
    rule = AlertRule("critical", 900, action="immediate_cleanup")

    with Alerts([rule], monitor=Reclaimer(default_steps(), read=lambda: 100)) as alerts:
        emit(change(Level.CRITICAL))
        wait_until(lambda: alerts.statistics().actions_run)

    assert shrinkable.called_at is None


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no"), MemoryError(), asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_action_that_raises_is_logged_and_the_next_one_runs(
    error: BaseException, change: Change, wait_until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Alert] = []

    def breaks(alert: Alert) -> None:
        raise error

    with Alerts([AlertRule("warning", action=breaks), AlertRule("warning", action=ran.append)]) as alerts:
        emit(change(Level.WARNING))
        wait_until(lambda: ran)

    assert (alerts.statistics().actions_run, alerts.statistics().actions_failed) == (1, 1)
    assert "breaks of alerts failed" in caplog.text
    assert "the service goes on" in caplog.text


def test_action_that_fails_five_times_in_a_row_is_not_run_again(
    wait_until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def breaks(alert: Alert) -> None:
        calls.append(alert.name)
        raise RuntimeError("no")

    with Alerts([AlertRule("warning", action=breaks)]) as alerts:
        for number in range(8):
            emit(overrun(f"owner {number}"))
            wait_until(lambda at=number: ended(alerts) == at + 1)  # type: ignore[misc]

    assert len(calls) == 5
    assert (alerts.statistics().actions_failed, alerts.statistics().actions_skipped) == (5, 3)
    assert "5 times in a row: it is not run any more" in caplog.text
    assert caplog.text.count("the service goes on") == 1


def test_action_that_blocks_delays_no_other_action_or_message(
    change: Change, wait_until: Wait, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Alert] = []
    rules = [
        AlertRule("warning", action=lambda alert: release.wait(), notify="log"),
        AlertRule("warning", action=ran.append),
    ]

    with Alerts(rules, action_timeout=0.05) as alerts:
        emit(change(Level.WARNING))
        wait_until(lambda: ran)
        for number in range(5):
            emit(overrun(f"owner {number}"))
        wait_until(lambda: len(ran) == 6)
        skipped = alerts.statistics().actions_skipped
        release.set()

    assert skipped == 5
    assert "has not ended after 0.05 s and was abandoned" in caplog.text
    assert alerts.statistics().actions_failed == 1
    assert alerts.statistics().channels[0].delivered == 6


def test_action_that_blocks_at_the_end_is_abandoned(
    change: Change, wait_until: Wait, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()

    def blocks(alert: Alert) -> None:
        begun.set()
        release.wait()

    alerts = Alerts([AlertRule("warning", action=blocks)])
    alerts.start()
    emit(change(Level.WARNING))
    begun.wait(10)

    alerts.stop(drain=0.05)

    assert "Alerts stopped while action" in caplog.text
    release.set()


async def test_coroutine_runs_on_the_loop_of_the_service(change: Change) -> None:
    ran: asyncio.Future[asyncio.AbstractEventLoop] = asyncio.get_running_loop().create_future()

    async def act(alert: Alert) -> None:
        await asyncio.sleep(0)
        ran.set_result(asyncio.get_running_loop())

    async with Alerts([AlertRule("warning", action=act)]) as alerts:
        emit(change(Level.WARNING))
        assert await ran is asyncio.get_running_loop()

    assert alerts.statistics().actions_run == 1


def test_coroutine_without_a_loop_gets_its_own(change: Change, wait_until: Wait) -> None:
    ran: list[str] = []

    async def act(alert: Alert) -> None:
        await asyncio.sleep(0)
        ran.append(threading.current_thread().name)

    with Alerts([AlertRule("warning", action=act)]):
        emit(change(Level.WARNING))
        wait_until(lambda: ran)

    assert ran == ["memtools-alerts-actions"]


async def test_coroutine_that_takes_too_long_is_cancelled(change: Change) -> None:
    cancelled = asyncio.Event()

    async def act(alert: Alert) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Alerts([AlertRule("warning", action=act)], action_timeout=0.05) as alerts:
        emit(change(Level.WARNING))
        await cancelled.wait()

    assert alerts.statistics().actions_failed == 1


async def test_coroutine_running_at_the_end_is_cancelled(change: Change) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def act(alert: Alert) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    async with Alerts([AlertRule("warning", action=act)], drain=0.05) as alerts:
        emit(change(Level.WARNING))
        await begun.wait()

    await asyncio.wait_for(cancelled.wait(), 10)
    assert alerts.statistics().actions_failed == 1


def test_coroutine_whose_loop_has_ended_counts_as_failed(
    change: Change, wait_until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(alert: Alert) -> None:
        raise AssertionError("it must not run")

    alerts = Alerts([AlertRule("warning", action=act)])

    async def begin() -> None:
        alerts.start()

    asyncio.run(begin())
    emit(change(Level.WARNING))
    wait_until(lambda: alerts.statistics().actions_failed == 1)
    alerts.stop()

    assert "the event loop in which alerts were started has ended" in caplog.text


def test_two_loops_in_two_threads_each_run_their_own_coroutines(change: Change) -> None:
    ran: dict[str, set[bool]] = {}

    async def serve(name: str) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        async def act(alert: Alert) -> None:
            ran.setdefault(name, set()).add(asyncio.get_running_loop() is loop)
            done.set()

        async with Alerts([AlertRule("warning", action=act)]):
            emit(change(Level.WARNING))
            await asyncio.wait_for(done.wait(), 20)

    threads = [threading.Thread(target=lambda name=name: asyncio.run(serve(name))) for name in ("a", "b")]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ran == {"a": {True}, "b": {True}}


def test_action_that_causes_events_without_end_ends(wait_until: Wait) -> None:
    calls: list[str] = []

    def echoes(alert: Alert) -> None:
        calls.append(alert.name)
        emit(overrun(f"{len(calls)}"))

    with Alerts([AlertRule("warning", action=echoes)]) as alerts:
        emit(overrun("first"))
        wait_until(lambda: ended(alerts) == 101)

    # A hundred incidents of a category, then one for all further ones, which is opened once.
    assert len(calls) == 101
    assert alerts.statistics().open_incidents == 101


def test_queue_of_actions_is_bounded(wait_until: Wait, release: threading.Event) -> None:
    with Alerts([AlertRule("warning", action=lambda alert: release.wait())]) as alerts:
        for kind in (overrun, lambda name: TaskAbandoned("scope", name, 1.0)):
            for number in range(100):
                emit(kind(f"{number}"))
        skipped = alerts.statistics().actions_skipped
        release.set()

    assert skipped in (99, 100)  # the one that runs is not in the queue
    assert alerts.statistics().actions_run == 200 - skipped


def test_action_may_stop_alerts_and_start_others(change: Change, wait_until: Wait) -> None:
    others: list[Alerts] = []

    def replaces(alert: Alert) -> None:
        alerts.stop()
        other = Alerts([AlertRule("warning", action=do_nothing)])
        other.start()
        others.append(other)

    alerts = Alerts([AlertRule("warning", action=replaces)])
    alerts.start()
    emit(change(Level.WARNING))
    wait_until(lambda: others)
    others[0].stop()

    assert not alerts.is_running
    assert not others[0].is_running


def test_events_from_threads_and_finalisers_are_all_received(caplog: pytest.LogCaptureFixture) -> None:
    class Dying:
        def __init__(self) -> None:
            self.itself = self  # a cycle: it dies in a collection, in the middle of any line

        def __del__(self) -> None:
            emit(overrun("shared"))

    caplog.set_level(logging.CRITICAL)
    received: list[Event] = []

    def work() -> None:
        for _ in range(300):
            Dying()
            emit(overrun("shared"))

    with Alerts([AlertRule("warning", notify="log")]) as alerts, subscribe(received.append):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # The dispatcher skips, and reports, what a finaliser emits while its own thread is in the same hook.
    assert alerts.statistics().received >= 1200
    assert alerts.statistics().sent == 1
    assert alerts.statistics().channels[0].delivered == 1
