"""What waits to be delivered: in order, within bounds, and nothing is lost unsaid."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.alerts import Alert, DeliveryFailed
from memtools.alerts._delivery import MAX_RETRY_AFTER_S, DeliveryQueue, QueuedMessage, RetryPolicy
from memtools.alerts._rules import Recipient

A, B = Recipient("a"), Recipient("b")


def outbox(size: int = 3, first_s: float = 1, max_s: float = 60, give_up_s: float = 3600) -> DeliveryQueue:
    return DeliveryQueue([A, B], size=size, retry=RetryPolicy(first_s, max_s, give_up_s), jitter=lambda: 1.0)


def take(box: DeliveryQueue, now: float) -> QueuedMessage:
    parcel = box.take(now)
    assert parcel is not None
    return parcel


def test_the_longest_wait_goes_first_and_each_channel_keeps_its_order(alert: Alert) -> None:
    box = outbox()
    for at, (target, number) in enumerate([(A, 1), (B, 2), (A, 3)]):
        box.put(target, replace(alert, number=number), at)

    taken = [take(box, 10.0) for _ in range(3)]

    assert [(parcel.recipient, parcel.alert.number) for parcel in taken] == [(A, 1), (B, 2), (A, 3)]
    assert box.take(10.0) is None
    assert box.next_due() == float("inf")


def test_pauses_double_up_to_the_longest_and_hold_up_one_channel_only(alert: Alert) -> None:
    box = outbox(max_s=5)
    box.put(A, alert, 0.0)
    box.put(B, alert, 0.0)

    pauses, now = [], 0.0
    for _ in range(5):
        pause = box.failed(take(box, now), DeliveryFailed("no"), now)
        assert pause is not None
        pauses.append(pause)
        if now == 0.0:
            assert take(box, now).recipient == B
            assert box.take(now) is None
        now += pause

    assert pauses == [1, 2, 4, 5, 5]
    assert box.next_due() == now


def test_a_delivery_ends_the_pauses(alert: Alert) -> None:
    box = outbox()
    box.put(A, alert, 0.0)
    box.put(A, alert, 0.0)
    box.failed(take(box, 0.0), DeliveryFailed("no"), 0.0)
    box.failed(take(box, 1.0), DeliveryFailed("no"), 1.0)

    assert box.delivered(take(box, 3.0)) == 2
    assert box.failed(take(box, 3.0), DeliveryFailed("no"), 3.0) == 1


@pytest.mark.parametrize(("asked", "pause"), [(30.0, 30.0), (0.0, 1.0), (10.0**9, MAX_RETRY_AFTER_S), (None, 1.0)])
def test_who_asks_to_be_left_alone_is_left_alone_within_bounds(alert: Alert, asked: float | None, pause: float) -> None:
    box = outbox()
    box.put(A, alert, 0.0)

    assert box.failed(take(box, 0.0), DeliveryFailed("no", retry_after_s=asked), 0.0) == pause
    assert box.next_due() == pause


def test_of_a_full_queue_the_oldest_goes_and_the_next_message_says_so(alert: Alert) -> None:
    box = outbox(size=2)
    for number in range(5):
        box.put(A, replace(alert, number=number), 0.0)

    first, second = take(box, 0.0), take(box, 0.0)

    assert (first.alert.number, first.alert.dropped, second.alert.number, second.alert.dropped) == (3, 3, 4, 0)
    assert box.statistics()[0].dropped == 3


def test_a_refusal_for_good_is_lost_and_said(alert: Alert) -> None:
    box = outbox()
    box.put(A, alert, 0.0)
    box.put(A, alert, 0.0)

    assert box.failed(take(box, 0.0), DeliveryFailed("gone", retry=False), 0.0) is None
    assert take(box, 0.0).alert.dropped == 1
    assert box.statistics()[0].refused == 1


def test_what_is_too_old_is_given_up(alert: Alert) -> None:
    box = outbox(give_up_s=100)
    box.put(A, alert, 0.0)
    box.put(A, alert, 50.0)

    assert take(box, 101.0).alert.dropped == 1
    assert box.statistics()[0].expired == 1


def test_what_is_left_at_the_end_is_counted_by_channel(alert: Alert) -> None:
    box = outbox()
    box.put(A, alert, 0.0)
    box.put(A, alert, 0.0)

    assert box.discard_all() == {"a": 2}
    assert (box.statistics()[0].left, box.statistics()[0].lost, box.statistics()[0].waiting) == (2, 2, 0)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "overflow", "deliver", "fail", "refuse", "wait"]),
        st.sampled_from([A, B]),
        st.floats(0, 500),
    ),
    max_size=150,
)


@given(_STEPS)
def test_every_message_is_delivered_waiting_or_said_to_be_lost(steps: list[tuple[str, Recipient, float]]) -> None:
    alert = Alert("opened", 1, "memory", "", "x", (), 0, 0, "i", 1, "s", 0.0)  # type: ignore[arg-type]  # a stand-in
    box, now, said = outbox(give_up_s=600), 0.0, 0
    put = {A: 0, B: 0}
    for what, target, pause in steps:
        now += pause if what == "wait" else 0.0
        if what in ("put", "overflow"):
            put[target] += 1
            box.put(target, alert, now) if what == "put" else box.count_overflow(target, 1)
        parcel = box.take(now) if what in ("deliver", "fail", "refuse") else None
        if parcel is None:
            continue
        if what == "deliver":
            said += parcel.alert.dropped
            box.delivered(parcel)
        else:
            box.failed(parcel, DeliveryFailed("no", retry=what == "fail"), now)

    for figures, target in zip(box.statistics(), (A, B), strict=True):
        assert figures.delivered + figures.waiting + figures.lost == put[target]
        assert figures.waiting <= 3
    # What was said by messages that arrived is true, and the rest is still to be said.
    assert said + sum(one.unreported for one in box._queues.values()) + sum(
        parcel.alert.dropped for one in box._queues.values() for parcel in one._waiting
    ) == sum(figures.lost for figures in box.statistics())
