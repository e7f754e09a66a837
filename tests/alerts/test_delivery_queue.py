"""The delivery queue keeps its order and its bounds, and reports what is lost."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.alerts import Alert
from memtools.alerts._delivery import MAX_RETRY_AFTER_S, DeliveryQueue, QueuedMessage, RetryPolicy
from memtools.alerts._rules import Recipient
from memtools.errors import DeliveryFailed

A, B = Recipient("a"), Recipient("b")


def make_queue(size: int = 3, first_s: float = 1, max_s: float = 60, give_up_s: float = 3600) -> DeliveryQueue:
    return DeliveryQueue([A, B], size=size, retry=RetryPolicy(first_s, max_s, give_up_s), jitter=lambda: 1.0)


def take(queue: DeliveryQueue, now: float) -> QueuedMessage:
    message = queue.take(now)
    assert message is not None
    return message


def test_oldest_message_goes_first_and_channels_keep_order(alert: Alert) -> None:
    queue = make_queue()
    for at, (recipient, number) in enumerate([(A, 1), (B, 2), (A, 3)]):
        queue.put(recipient, replace(alert, number=number), at)

    taken = [take(queue, 10.0) for _ in range(3)]

    assert [(message.recipient, message.alert.number) for message in taken] == [(A, 1), (B, 2), (A, 3)]
    assert queue.take(10.0) is None
    assert queue.next_due() == float("inf")


def test_pauses_double_and_delay_one_channel_only(alert: Alert) -> None:
    queue = make_queue(max_s=5)
    queue.put(A, alert, 0.0)
    queue.put(B, alert, 0.0)

    pauses, now = [], 0.0
    for _ in range(5):
        pause = queue.failed(take(queue, now), DeliveryFailed("no"), now)
        assert pause is not None
        pauses.append(pause)
        if now == 0.0:
            assert take(queue, now).recipient == B
            assert queue.take(now) is None
        now += pause

    assert pauses == [1, 2, 4, 5, 5]
    assert queue.next_due() == now


def test_delivery_resets_the_pauses(alert: Alert) -> None:
    queue = make_queue()
    queue.put(A, alert, 0.0)
    queue.put(A, alert, 0.0)
    queue.failed(take(queue, 0.0), DeliveryFailed("no"), 0.0)
    queue.failed(take(queue, 1.0), DeliveryFailed("no"), 1.0)

    assert queue.delivered(take(queue, 3.0)) == 2
    assert queue.failed(take(queue, 3.0), DeliveryFailed("no"), 3.0) == 1


@pytest.mark.parametrize(("asked", "pause"), [(30.0, 30.0), (0.0, 1.0), (10.0**9, MAX_RETRY_AFTER_S), (None, 1.0)])
def test_retry_after_is_honoured_within_bounds(alert: Alert, asked: float | None, pause: float) -> None:
    queue = make_queue()
    queue.put(A, alert, 0.0)

    assert queue.failed(take(queue, 0.0), DeliveryFailed("no", retry_after_s=asked), 0.0) == pause
    assert queue.next_due() == pause


def test_full_queue_drops_the_oldest_and_reports_it(alert: Alert) -> None:
    queue = make_queue(size=2)
    for number in range(5):
        queue.put(A, replace(alert, number=number), 0.0)

    first, second = take(queue, 0.0), take(queue, 0.0)

    assert (first.alert.number, first.alert.dropped, second.alert.number, second.alert.dropped) == (3, 3, 4, 0)
    assert queue.statistics()[0].dropped == 3


def test_refused_message_is_lost_and_reported(alert: Alert) -> None:
    queue = make_queue()
    queue.put(A, alert, 0.0)
    queue.put(A, alert, 0.0)

    assert queue.failed(take(queue, 0.0), DeliveryFailed("gone", retry=False), 0.0) is None
    assert take(queue, 0.0).alert.dropped == 1
    assert queue.statistics()[0].refused == 1


def test_message_that_is_too_old_is_given_up(alert: Alert) -> None:
    queue = make_queue(give_up_s=100)
    queue.put(A, alert, 0.0)
    queue.put(A, alert, 50.0)

    assert take(queue, 101.0).alert.dropped == 1
    assert queue.statistics()[0].expired == 1


def test_messages_left_at_the_end_are_counted_by_channel(alert: Alert) -> None:
    queue = make_queue()
    queue.put(A, alert, 0.0)
    queue.put(A, alert, 0.0)

    assert queue.discard_all() == {"a": 2}
    assert (queue.statistics()[0].left, queue.statistics()[0].lost, queue.statistics()[0].waiting) == (2, 2, 0)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "overflow", "deliver", "fail", "refuse", "wait"]),
        st.sampled_from([A, B]),
        st.floats(0, 500),
    ),
    max_size=150,
)


@given(_STEPS)
def test_every_message_is_delivered_waiting_or_reported_lost(steps: list[tuple[str, Recipient, float]]) -> None:
    alert = Alert("opened", 1, "memory", "", "x", (), 0, 0, "i", 1, "s", 0.0)  # type: ignore[arg-type]  # a stand-in
    queue, now, reported = make_queue(give_up_s=600), 0.0, 0
    put = {A: 0, B: 0}
    for step, recipient, pause in steps:
        now += pause if step == "wait" else 0.0
        if step in ("put", "overflow"):
            put[recipient] += 1
            queue.put(recipient, alert, now) if step == "put" else queue.count_overflow(recipient, 1)
        message = queue.take(now) if step in ("deliver", "fail", "refuse") else None
        if message is None:
            continue
        if step == "deliver":
            reported += message.alert.dropped
            queue.delivered(message)
        else:
            queue.failed(message, DeliveryFailed("no", retry=step == "fail"), now)

    for figures, recipient in zip(queue.statistics(), (A, B), strict=True):
        assert figures.delivered + figures.waiting + figures.lost == put[recipient]
        assert figures.waiting <= 3
    # Messages that arrived have reported some of the lost ones; the rest is still to be reported.
    assert reported + sum(channel.unreported for channel in queue._queues.values()) + sum(
        message.alert.dropped for channel in queue._queues.values() for message in channel._waiting
    ) == sum(figures.lost for figures in queue.statistics())
