"""Anomalies on a timeline: a shift of the level, a burst, and a floor that does not come back after a deploy."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from memtools._records import as_dict, record
from memtools.analysis._robust_statistics import median, noise_of
from memtools.timelines import Sample, TimelineEvent
from memtools.units import format_size

DEPLOY: Final = "deploy"
_BLOCK_S: Final = 300.0
_SIDE: Final = 12  # blocks on each side of a shift: an hour
_MIN_SHARE: Final = 0.04  # of the limit, or of the level where there is none
_MIN_NOISE: Final = 5.0
_AT_ONCE: Final = 0.7  # of a shift, within three blocks
_MIN_BURST_SHARE: Final = 0.1
_MAX_BURST_BLOCKS: Final = 12
_BACK: Final = 0.25  # of a burst, at most, may stay
_BEFORE_DEPLOY_S: Final = 3_600.0
_SETTLE_S: Final = 1_800.0  # after a deploy
_AFTER_DEPLOY_S: Final = 5_400.0
_MIN_KEPT_SHARE: Final = 0.02  # of the floor before
_MIN_KEPT_BYTES: Final = 1 << 20
_MAX_ANOMALIES: Final = 100


@record
class Anomaly:
    """Something out of the ordinary on a timeline.

    Attributes:
        kind: `"level shift"`, `"burst"` or `"deploy"` (a floor that did not come back after it).
        at_s: when it began, in seconds since the epoch.
        seconds: how long a burst took, or how much time after a shift or a deploy was looked at.
        before_bytes: the level, or the floor, before it.
        after_bytes: the level or the floor after it; of a burst, its height.
        text: what happened, as a sentence.
    """

    kind: str
    at_s: float
    seconds: float
    before_bytes: int
    after_bytes: int
    text: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)


@record
class _Block:
    """Five minutes, or one merged sample that took longer.

    Attributes:
        at_s: when it began.
        lowest: the lowest use.
        highest: the highest use.
    """

    at_s: float
    lowest: int
    highest: int


def find_anomalies(
    samples: Iterable[Sample], events: Iterable[TimelineEvent] = (), *, limit_bytes: int | None = None
) -> tuple[Anomaly, ...]:
    """Return the anomalies of a timeline, oldest first; the last 100.

    Args:
        samples: oldest first.
        events: those of kind `"deploy"` are looked at.
        limit_bytes: what the process may use: a shift below 4 % of it, or a burst below 10 %, is none; without one
            those are shares of the median use.

    Cost: some 20 ms for a week of minutes.
    """
    blocks = _blocks(samples)
    if len(blocks) < 2:
        return ()
    scale = float(limit_bytes or median([block.lowest for block in blocks]))
    found = [*_shifts(blocks, scale), *_bursts(blocks, scale), *_deploys(blocks, events)]
    return tuple(sorted(found, key=lambda anomaly: anomaly.at_s))[-_MAX_ANOMALIES:]


def _blocks(samples: Iterable[Sample]) -> list[_Block]:
    blocks: list[_Block] = []
    index: float | None = None
    for sample in samples:
        place = sample.at_s // _BLOCK_S
        if place == index:
            last = blocks.pop()
            lowest, highest = min(last.lowest, sample.lowest_bytes), max(last.highest, sample.highest_bytes)
            blocks.append(_Block(last.at_s, lowest, highest))
        else:
            blocks.append(_Block(sample.at_s, sample.lowest_bytes, sample.highest_bytes))
        index = place
    return blocks


def _shifts(blocks: Sequence[_Block], scale: float) -> list[Anomaly]:
    lows = [block.lowest for block in blocks]
    found: list[Anomaly] = []
    place = _SIDE
    while place <= len(lows) - _SIDE:
        before, after = lows[place - _SIDE : place], lows[place : place + _SIDE]
        shift = median(after) - median(before)
        noise = max(noise_of(before), noise_of(after))
        at_once = lows[min(place + 1, len(lows) - 1)] - lows[place - 2]
        is_shift = abs(shift) >= max(_MIN_SHARE * scale, _MIN_NOISE * noise) and at_once * shift > 0
        # What the level fluctuates by within an hour on one side is no shift either.
        spread = max(_spread(before), _spread(after))
        if not is_shift or abs(at_once) < _AT_ONCE * abs(shift) or spread > abs(shift) / 2:
            place += 1
            continue
        word = "rose" if shift > 0 else "fell"
        low, high = int(median(before)), int(median(after))
        text = (
            f"the level {word} from {format_size(low)} to {format_size(high)} at once, and stayed for an hour or more"
        )
        found.append(Anomaly("level shift", blocks[place].at_s, _SIDE * _BLOCK_S, low, high, text))
        place += _SIDE
    return found


def _spread(values: Sequence[float]) -> float:
    # The lowest and the highest of twelve may belong to the other side.
    ordered = sorted(values)
    return ordered[-3] - ordered[2]


def _bursts(blocks: Sequence[_Block], scale: float) -> list[Anomaly]:
    found: list[Anomaly] = []
    place = _SIDE
    while place < len(blocks):
        before = blocks[place - _SIDE : place]
        peaks = [block.highest for block in before]
        usual = median(peaks)
        # Above all peaks of the hour before: the teeth of a regular sawtooth are no bursts.
        least = max(peaks) + max(_MIN_BURST_SHARE * scale, _MIN_NOISE * noise_of(peaks))
        end = place
        while end < len(blocks) and blocks[end].highest >= least:
            end += 1
        length = end - place
        if not length:
            place += 1
            continue
        peak = max(block.highest for block in blocks[place:end])
        is_over = end < len(blocks) and blocks[end].lowest <= usual + _BACK * (peak - usual)
        if is_over and length <= _MAX_BURST_BLOCKS:
            took_s = blocks[end].at_s - blocks[place].at_s
            text = f"a burst from {format_size(usual)} to {format_size(peak)}, over within {took_s / 60:.0f} min"
            found.append(Anomaly("burst", blocks[place].at_s, took_s, int(usual), peak, text))
        place = end
    return found


def _deploys(blocks: Sequence[_Block], events: Iterable[TimelineEvent]) -> list[Anomaly]:
    found: list[Anomaly] = []
    deploys = [event for event in events if event.kind == DEPLOY]
    for event, following in pairwise([*deploys, None]):
        if event is None:
            continue
        end = event.at_s + _AFTER_DEPLOY_S if following is None else min(event.at_s + _AFTER_DEPLOY_S, following.at_s)
        before = [b.lowest for b in blocks if event.at_s - _BEFORE_DEPLOY_S <= b.at_s < event.at_s - _BLOCK_S]
        after = [b.lowest for b in blocks if event.at_s + _SETTLE_S <= b.at_s < end]
        if len(before) < 3 or len(after) < 3:
            continue
        floor, new = min(before), min(after)
        noise = max(noise_of(before), noise_of(after))
        if new - floor < max(_MIN_KEPT_BYTES, _MIN_KEPT_SHARE * floor, _MIN_NOISE * noise):
            continue
        name = f"the deploy {event.text!r}" if event.text else "a deploy"
        text = f"after {name} the floor did not come back: it stays {format_size(new - floor)} higher"
        found.append(Anomaly(DEPLOY, event.at_s, end - event.at_s, floor, new, text))
    return found
