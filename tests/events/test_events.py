"""Events and hooks: order, failures, threads, forks."""

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
def received() -> Iterator[list[Event]]:
    """Collect the events of the test."""
    events: list[Event] = []
    with subscribe(events.append):
        yield events


def test_hook_receives_every_event_in_order(received: list[Event]) -> None:
    for event in (HIGH, OVERRUN, ENDED, ABANDONED):
        emit(event)

    assert received == [HIGH, OVERRUN, ENDED, ABANDONED]


def test_hook_receives_nothing_after_its_with_block() -> None:
    events: list[Event] = []
    with subscribe(events.append):
        pass

    emit(HIGH)

    assert events == []


def test_second_close_does_nothing(received: list[Event]) -> None:
    subscription = subscribe(lambda event: None)

    subscription.close()
    subscription.close()
    emit(HIGH)

    assert received == [HIGH]


def test_hook_may_be_subscribed_twice_and_closed_once() -> None:
    events: list[Event] = []
    first, second = subscribe(events.append), subscribe(events.append)

    emit(HIGH)
    first.close()
    emit(OVERRUN)
    second.close()

    assert events == [HIGH, HIGH, OVERRUN]


@pytest.mark.parametrize("hook", [None, "print", 3])
def test_hook_that_is_not_callable_is_refused(hook: object) -> None:
    before = statistics().hooks

    with pytest.raises(ConfigError, match="a callable that takes one event"):
        subscribe(hook)  # type: ignore[arg-type]  # refused at run time, too

    assert statistics().hooks == before


def test_hook_that_raises_is_logged_once_and_always_counted(
    received: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    def failing(event: Event) -> None:
        raise OSError("the pager is down")

    before = statistics()
    with subscribe(failing), caplog.at_level(logging.ERROR, logger="memtools.events"):
        emit(HIGH)
        emit(OVERRUN)
        emit(ENDED)

    assert received == [HIGH, OVERRUN, ENDED]
    assert statistics().failed - before.failed == 3
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "failing) failed on HighUsage(name='nightly'" in caplog.text


def test_hooks_after_one_that_raises_are_called(caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []

    with subscribe(lambda event: 1 / 0), subscribe(events.append):
        emit(HIGH)

    assert events == [HIGH]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_base_exception_of_a_hook_propagates(exception: type[BaseException]) -> None:
    def interrupted(event: Event) -> None:
        raise exception

    with subscribe(interrupted), pytest.raises(exception):
        emit(HIGH)


def test_interrupted_hook_receives_the_next_event() -> None:
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


def test_hook_may_close_its_own_subscription(received: list[Event]) -> None:
    calls: list[Event] = []

    def once(event: Event) -> None:
        calls.append(event)
        subscription.close()

    subscription = subscribe(once)
    emit(HIGH)
    emit(OVERRUN)

    assert calls == [HIGH]
    assert received == [HIGH, OVERRUN]


def test_hook_closed_by_an_earlier_hook_is_not_called() -> None:
    calls: list[Event] = []

    with subscribe(lambda event: later.close()):
        later = subscribe(calls.append)
        emit(HIGH)

    assert calls == []


def test_hook_subscribed_during_an_event_gets_the_next_one() -> None:
    calls: list[Event] = []
    closers: list[Callable[[], None]] = []

    def subscribe_once(event: Event) -> None:
        if not closers:
            closers.append(subscribe(calls.append).close)

    with subscribe(subscribe_once):
        emit(HIGH)
        emit(OVERRUN)
    closers[0]()

    assert calls == [OVERRUN]


def test_event_caused_by_a_hook_goes_to_the_other_hooks_only(received: list[Event]) -> None:
    calls: list[Event] = []

    def profiled(event: Event) -> None:
        calls.append(event)
        emit(ENDED)

    before = statistics()
    with subscribe(profiled):
        emit(HIGH)

    assert calls == [HIGH]
    assert sorted(received, key=repr) == [HIGH, ENDED]
    assert statistics().skipped - before.skipped == 1


def test_event_without_hooks_is_not_counted() -> None:
    before = statistics()

    emit(HIGH)

    assert statistics() == before


def test_events_of_many_threads_are_all_dispatched() -> None:
    events: list[Event] = []
    before = statistics()
    start = threading.Barrier(4)

    def emit_many() -> None:
        start.wait()
        for _ in range(250):
            emit(HIGH)

    threads = [threading.Thread(target=emit_many) for _ in range(4)]
    with subscribe(events.append):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(events) == 1000
    assert statistics().emitted - before.emitted == 1000


def test_hook_running_in_one_thread_is_called_in_another() -> None:
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
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # on purpose
def test_child_forked_while_the_lock_is_held_can_emit() -> None:
    locked, released = threading.Event(), threading.Event()

    def hold_lock() -> None:
        with _dispatcher.lock:
            locked.set()
            released.wait()

    thread = threading.Thread(target=hold_lock)
    thread.start()
    locked.wait()

    child = multiprocessing.get_context("fork").Process(target=_emit_and_exit)
    child.start()
    child.join(timeout=30)
    exit_code = child.exitcode
    released.set()
    thread.join()
    child.kill()
    child.join()

    assert exit_code == 7


def _emit_and_exit() -> None:
    with subscribe(lambda event: None):
        emit(HIGH)
    os._exit(7)


@pytest.mark.parametrize(
    ("hook", "shown"),
    [
        (time.sleep, "Subscription(sleep)"),
        (functools.partial(print), "Subscription(partial)"),
        (_emit_and_exit, "Subscription(_emit_and_exit)"),
    ],
)
def test_repr_of_a_subscription_names_its_hook(hook: Callable[[Event], object], shown: str) -> None:
    with subscribe(hook) as subscription:
        assert repr(subscription) == shown


@pytest.mark.parametrize("event", [HIGH, OVERRUN, ENDED, ABANDONED], ids=lambda event: type(event).__name__)
def test_event_is_frozen_and_pickled(event: Event) -> None:
    copied = pickle.loads(pickle.dumps(event))

    assert copied == event
    assert hash(copied) == hash(event)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(event)[0].name, "other")
