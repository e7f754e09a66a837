"""Listeners hear every fact; none of them can harm what is watched."""

import asyncio
import dataclasses
import functools
import logging
import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from memtools.errors import ConfigError
from memtools.events import (
    BudgetOverrun,
    Event,
    HighUsage,
    ScopeEnded,
    TaskAbandoned,
    _dispatcher,
    emit,
    statistics,
    subscribe,
)

HIGH = HighUsage(name="nightly", kind="scope", used_bytes=60, warn_bytes=50, largest=(("load", 40),))
OVERRUN = BudgetOverrun("nightly", "scope", used_bytes=60, budget_bytes=50, measure="peak", in_flight=True)
ENDED = ScopeEnded("load", "task", ("nightly", "load"), 1, 2, 3, 0.5, "rss", exact=False, failed=False)
ABANDONED = TaskAbandoned(scope="nightly", task="load", grace_s=5.0)


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    """Everything that was told during the test."""
    events: list[Event] = []
    with subscribe(events.append):
        yield events


def test_a_hook_hears_every_event_in_order(heard: list[Event]) -> None:
    for event in (HIGH, OVERRUN, ENDED, ABANDONED):
        emit(event)

    assert heard == [HIGH, OVERRUN, ENDED, ABANDONED]


def test_a_hook_hears_nothing_after_its_with_block() -> None:
    events: list[Event] = []
    with subscribe(events.append):
        pass

    emit(HIGH)

    assert events == []


def test_closing_twice_does_nothing_and_leaves_the_others_alone(heard: list[Event]) -> None:
    subscription = subscribe(lambda event: None)

    subscription.close()
    subscription.close()
    emit(HIGH)

    assert heard == [HIGH]


def test_the_same_hook_may_listen_twice_and_leave_once() -> None:
    events: list[Event] = []
    first, second = subscribe(events.append), subscribe(events.append)

    emit(HIGH)
    first.close()
    emit(OVERRUN)
    second.close()

    assert events == [HIGH, HIGH, OVERRUN]


@pytest.mark.parametrize("hook", [None, "print", 3])
def test_what_cannot_be_called_is_refused_and_not_subscribed(hook: object) -> None:
    before = statistics().hooks

    with pytest.raises(ConfigError, match="a callable that takes one event"):
        subscribe(hook)  # type: ignore[arg-type]  # the point of the test

    assert statistics().hooks == before


def test_a_broken_hook_is_logged_once_counted_always_and_stops_nobody(
    heard: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise OSError("the pager is down")

    before = statistics()
    with subscribe(broken), caplog.at_level(logging.ERROR, logger="memtools.events"):
        emit(HIGH)
        emit(OVERRUN)
        emit(ENDED)

    assert heard == [HIGH, OVERRUN, ENDED]
    assert statistics().failed - before.failed == 3
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "broken) failed on HighUsage(name='nightly'" in caplog.text


def test_hooks_after_a_broken_one_still_hear(caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []

    with subscribe(lambda event: 1 / 0), subscribe(events.append):
        emit(HIGH)

    assert events == [HIGH]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_an_interrupt_and_a_cancellation_pass_through_a_hook(exception: type[BaseException]) -> None:
    def interrupted(event: Event) -> None:
        raise exception

    with subscribe(interrupted), pytest.raises(exception):
        emit(HIGH)


def test_a_hook_that_was_interrupted_hears_the_next_event() -> None:
    events: list[Event] = []

    def interrupted_once(event: Event) -> None:
        events.append(event)
        if event is HIGH:
            raise KeyboardInterrupt

    with subscribe(interrupted_once):
        with pytest.raises(KeyboardInterrupt):
            emit(HIGH)
        emit(OVERRUN)

    assert events == [HIGH, OVERRUN]


def test_a_hook_may_leave_while_it_is_told(heard: list[Event]) -> None:
    calls: list[Event] = []

    def once(event: Event) -> None:
        calls.append(event)
        subscription.close()

    subscription = subscribe(once)
    emit(HIGH)
    emit(OVERRUN)

    assert calls == [HIGH]
    assert heard == [HIGH, OVERRUN]


def test_a_hook_that_another_hook_has_closed_is_not_told_any_more() -> None:
    calls: list[Event] = []

    with subscribe(lambda event: later.close()):
        later = subscribe(calls.append)
        emit(HIGH)

    assert calls == []


def test_a_hook_that_subscribes_another_is_heard_from_the_next_event_on() -> None:
    calls: list[Event] = []
    joined: list[Callable[[], None]] = []

    def invite(event: Event) -> None:
        if not joined:
            joined.append(subscribe(calls.append).close)

    with subscribe(invite):
        emit(HIGH)
        emit(OVERRUN)
    joined[0]()

    assert calls == [OVERRUN]


def test_a_hook_that_causes_events_is_not_told_of_them_but_others_are(heard: list[Event]) -> None:
    calls: list[Event] = []

    def profiled(event: Event) -> None:
        calls.append(event)
        emit(ENDED)

    before = statistics()
    with subscribe(profiled):
        emit(HIGH)

    assert calls == [HIGH]
    assert sorted(heard, key=repr) == [HIGH, ENDED]
    assert statistics().skipped - before.skipped == 1


def test_nothing_is_counted_when_nobody_listens() -> None:
    before = statistics()

    emit(HIGH)

    assert statistics() == before


def test_events_from_many_threads_are_all_told_and_counted() -> None:
    events: list[Event] = []
    before = statistics()
    start = threading.Barrier(4)

    def tell() -> None:
        start.wait()
        for _ in range(250):
            emit(HIGH)

    threads = [threading.Thread(target=tell) for _ in range(4)]
    with subscribe(events.append):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(events) == 1000
    assert statistics().emitted - before.emitted == 1000


def test_a_hook_that_is_busy_in_one_thread_still_hears_the_others() -> None:
    events: list[Event] = []
    entered, released = threading.Event(), threading.Event()

    def slow(event: Event) -> None:
        events.append(event)
        if event is HIGH:
            entered.set()
            released.wait()

    with subscribe(slow):
        busy = threading.Thread(target=emit, args=(HIGH,))
        busy.start()
        entered.wait()
        emit(OVERRUN)
        released.set()
        busy.join()

    assert events == [HIGH, OVERRUN]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # that is the case tested
def test_a_child_forked_while_another_thread_counts_can_still_emit() -> None:
    locked, released = threading.Event(), threading.Event()

    def count_slowly() -> None:
        with _dispatcher.lock:
            locked.set()
            released.wait()

    thread = threading.Thread(target=count_slowly)
    thread.start()
    locked.wait()

    child = multiprocessing.get_context("fork").Process(target=_emit_and_leave)
    child.start()
    child.join(timeout=30)
    exit_code = child.exitcode
    released.set()
    thread.join()
    child.kill()
    child.join()

    assert exit_code == 7


def _emit_and_leave() -> None:
    with subscribe(lambda event: None):
        emit(HIGH)
    os._exit(7)


@pytest.mark.parametrize(
    ("hook", "shown"),
    [
        (time.sleep, "Subscription(sleep)"),
        (functools.partial(print), "Subscription(partial)"),
        (_emit_and_leave, "Subscription(_emit_and_leave)"),
    ],
)
def test_a_subscription_names_its_hook(hook: Callable[[Event], object], shown: str) -> None:
    with subscribe(hook) as subscription:
        assert repr(subscription) == shown


@pytest.mark.parametrize("event", [HIGH, OVERRUN, ENDED, ABANDONED], ids=lambda event: type(event).__name__)
def test_an_event_is_frozen_and_travels_between_processes(event: Event) -> None:
    revived = pickle.loads(pickle.dumps(event))

    assert revived == event
    assert hash(revived) == hash(event)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(event)[0].name, "other")
