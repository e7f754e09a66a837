"""Calls in a thread of their own that the caller can abandon."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from memtools._safe_calls import AbandonableCall


class Blocked:
    """A function that returns when the test releases it."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.released = threading.Event()
        self.error: BaseException | None = None

    def __call__(self) -> str:
        self.started.set()
        assert self.released.wait(10)
        if self.error is not None:
            raise self.error
        return "done"


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    function = Blocked()
    yield function
    function.released.set()


def started(function: Callable[[], str], **options: Callable[[], object]) -> AbandonableCall[str]:
    call = AbandonableCall(function, name="test call", **options)
    call.start()
    return call


def join(call: AbandonableCall[str]) -> None:
    assert call.thread is not None
    call.thread.join(10)
    assert not call.thread.is_alive()


def test_result_is_the_return_value() -> None:
    call = started(lambda: threading.current_thread().name)

    assert call.result(10.0) == "test call"
    join(call)


def test_result_raises_the_exception_of_the_call() -> None:
    def fail() -> str:
        raise LookupError("no")

    call = started(fail)

    with pytest.raises(LookupError, match="no"):
        call.result(10.0)
    join(call)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_result_raises_a_base_exception_of_the_call(error: BaseException) -> None:
    def leave() -> str:
        raise error

    call = started(leave)

    with pytest.raises(type(error)):
        call.result(10.0)
    join(call)


def test_thread_is_a_daemon(blocked: Blocked) -> None:
    call = started(blocked)

    assert call.thread is not None
    assert call.thread.daemon
    blocked.released.set()
    join(call)


def test_late_call_is_abandoned_with_a_timeout_error(blocked: Blocked) -> None:
    call = started(blocked)

    with pytest.raises(TimeoutError, match=r"test call has not ended after 0\.01 s; its thread was abandoned"):
        call.result(0.01)

    blocked.released.set()
    join(call)


def test_abandoned_call_that_ends_late_drops_its_value(blocked: Blocked) -> None:
    late: list[str] = []
    call = started(blocked, on_late_end=lambda: late.append(threading.current_thread().name))
    assert blocked.started.wait(10)

    assert call.abandon()
    assert late == []
    blocked.released.set()
    join(call)

    assert late == ["test call"]
    assert (call.value, call.error) == (None, None)


def test_abandoned_call_that_fails_late_drops_its_error(blocked: Blocked) -> None:
    late: list[int] = []
    blocked.error = ValueError("late")
    call = started(blocked, on_late_end=lambda: late.append(1))

    assert call.abandon()
    blocked.released.set()
    join(call)

    assert late == [1]
    assert (call.value, call.error) == (None, None)


def test_call_that_ended_in_time_cannot_be_abandoned() -> None:
    late: list[int] = []
    call = started(lambda: "in time", on_late_end=lambda: late.append(1))
    assert call.wait(10.0)

    assert not call.abandon()
    assert call.result(0.0) == "in time"
    assert late == []
    join(call)


def test_second_abandon_returns_false(blocked: Blocked) -> None:
    call = started(blocked)

    assert [call.abandon(), call.abandon()] == [True, False]
    blocked.released.set()
    join(call)


def test_wait_returns_whether_the_call_has_ended(blocked: Blocked) -> None:
    call = started(blocked)

    assert not call.wait(0.0)
    assert not call.wait(-1.0)
    blocked.released.set()
    assert call.wait(10.0)
    join(call)


def test_end_and_abandonment_at_the_same_moment_are_decided_once() -> None:
    for _ in range(200):
        late: list[int] = []
        call = started(lambda: "done", on_late_end=lambda late=late: late.append(1))  # type: ignore[misc]

        was_abandoned = call.abandon()
        join(call)

        assert bool(late) == was_abandoned
        assert call.value == (None if was_abandoned else "done")


def test_several_threads_that_abandon_have_one_winner(blocked: Blocked) -> None:
    call = started(blocked)
    start = threading.Barrier(4)
    results: list[bool] = []

    def abandon() -> None:
        start.wait(10)
        results.append(call.abandon())

    threads = [threading.Thread(target=abandon) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    blocked.released.set()
    join(call)

    assert sorted(results) == [False, False, False, True]


def test_run_makes_the_call_in_the_calling_thread() -> None:
    call = AbandonableCall(threading.get_ident, name="inline")

    call.run()

    assert call.result(0.0) == threading.get_ident()
    assert call.thread is None


def test_start_without_a_free_thread_raises_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    call = AbandonableCall(lambda: calls.append(1), name="test call")

    with pytest.raises(RuntimeError, match="can't start new thread"):
        call.start()
    assert calls == []


def test_raised_error_leaves_no_reference_cycle() -> None:
    def fail() -> str:
        raise LookupError

    call = started(fail)
    with pytest.raises(LookupError):
        call.result(10.0)
    join(call)
    reference = weakref.ref(call.thread)

    gc.disable()
    try:
        del call
        assert reference() is None
    finally:
        gc.enable()
