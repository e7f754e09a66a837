"""`BoundedList(on_evict=...)`."""

import logging
from functools import partial
from threading import Event, Thread, get_ident

import pytest

from memtools.structures import BoundedList, _eviction


def test_hook_gets_oldest_first_when_the_list_is_within_bounds() -> None:
    reported: list[tuple[list[int], int]] = []
    recent: BoundedList[int] = BoundedList(
        range(4), 4, keep=2, on_evict=lambda evicted: reported.append((evicted, len(recent)))
    )

    recent.append(4)
    recent.extend([5, 6, 7])

    assert reported == [([0, 1, 2], 2), ([3, 4, 5], 2)]


def test_hook_of_an_exact_window_gets_every_item_once() -> None:
    reported: list[int] = []
    recent: BoundedList[int] = BoundedList(maxlen=5, on_evict=reported.extend)

    for number in range(100):
        recent.append(number)
    recent.extend(iter(range(100, 5000)))
    recent.insert(0, -1)

    assert reported == [*range(4995), -1]
    assert recent == [*range(4995, 5000)]


def test_hook_is_not_called_for_removed_items() -> None:
    reported: list[int] = []
    recent = BoundedList([1, 2, 3], 3, on_evict=reported.extend)

    recent.pop(0)
    del recent[0]
    recent.clear()

    assert reported == []


def test_hook_that_fails_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def broken(evicted: list[int]) -> None:
        raise OSError("disk full")

    recent = BoundedList([1, 2], 2, on_evict=broken)

    with caplog.at_level(logging.ERROR):
        for number in range(10):
            recent.append(number)

    assert recent == [8, 9]
    assert recent.statistics().hook_failures == 10
    assert [record.name for record in caplog.records] == ["memtools.structures"]
    assert "disk full" in caplog.text


def test_failures_are_logged_again_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 159.9, 160.0])
    logger = partial(_eviction.RateLimitedLogger, clock=lambda: next(clock))
    monkeypatch.setattr(_eviction, "RateLimitedLogger", logger)
    recent = BoundedList((), 0, on_evict=lambda evicted: 1 / 0)

    for number in range(3):
        recent.append(number)

    assert len(caplog.records) == 2


def test_interrupt_in_the_hook_passes_and_later_calls_work() -> None:
    reported: list[list[int]] = []

    def interrupted_once(evicted: list[int]) -> None:
        reported.append(evicted)
        if len(reported) == 1:
            raise KeyboardInterrupt

    recent = BoundedList([1], 1, on_evict=interrupted_once)

    with pytest.raises(KeyboardInterrupt):
        recent.append(2)
    recent.append(3)

    assert recent == [3]
    assert reported == [[1], [2]]


def test_hook_that_adds_items_is_not_nested() -> None:
    reported: list[list[int]] = []
    depth = 0

    def put_back_small(evicted: list[int]) -> None:
        nonlocal depth
        depth += 1
        assert depth == 1
        reported.append(evicted)
        if evicted[0] < 3:
            recent.append(evicted[0] + 10)
        depth -= 1

    recent: BoundedList[int] = BoundedList([1, 2, 3], 3, on_evict=put_back_small)

    recent.append(4)

    assert reported == [[1], [2], [3]]
    assert recent == [4, 11, 12]
    assert recent.statistics().hook_failures == 0


def test_hook_that_puts_all_items_back_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def put_back(evicted: list[int]) -> None:
        nonlocal calls
        calls += 1
        recent.extend(evicted)

    recent: BoundedList[int] = BoundedList([1, 2, 3], 3, on_evict=put_back)

    recent.append(4)

    assert calls == 100
    assert len(recent) == 3
    assert recent.statistics().hook_failures == 1
    assert "without end" in caplog.text


def test_hook_of_one_list_may_fill_another() -> None:
    archive: BoundedList[int] = BoundedList(maxlen=100)
    recent = BoundedList(range(3), 3, on_evict=archive.extend)

    recent.extend(range(3, 50))

    assert archive + recent == list(range(50))


def test_hook_in_another_thread_does_not_delay_reports() -> None:
    entered, leave = Event(), Event()
    reported: list[tuple[int, list[int]]] = []

    def hook(evicted: list[int]) -> None:
        reported.append((get_ident(), evicted))
        if evicted == [1]:
            entered.set()
            leave.wait(30)

    recent = BoundedList([1], 1, on_evict=hook)
    thread = Thread(target=recent.append, args=(2,))
    thread.start()
    assert entered.wait(30)

    recent.append(3)
    leave.set()
    thread.join(30)

    assert reported == [(thread.ident, [1]), (get_ident(), [2])]
