"""Where the marks of an axis stand, and what is written beside them."""

import math
from collections.abc import Sequence
from typing import Final

from memtools.records import record

_MOST_DECIMALS: Final = 4


@record
class Scale:
    """A unit and its multiples.

    Attributes:
        units: names and factors, the smallest first.
        steps: what a mark may be a multiple of, within one power of `base`.
        base: the power by which the steps repeat.
    """

    units: tuple[tuple[str, float], ...]
    steps: tuple[float, ...]
    base: float


BYTES: Final = Scale((("B", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40)), (1.0,), 2.0)
SECONDS: Final = Scale((("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)), (1.0, 2.0, 5.0), 10.0)
COUNT: Final = Scale((("", 1.0),), (1.0, 2.0, 5.0), 10.0)


def marks(low: float, high: float, scale: Scale, *, most: int = 5) -> tuple[float, ...]:
    """Return at most about `most` round values from below `low` to above `high`."""
    step = _step(high - low, scale, most)
    first, last = math.floor(low / step), math.ceil(high / step)
    return tuple(number * step for number in range(first, last + 1))


def label(value: float, scale: Scale, *, step: float = 0.0) -> str:
    """Return `value` with its unit, with as many decimals as tell it from `value + step`."""
    name, factor = scale.units[0]
    for name_above, factor_above in scale.units:
        if abs(value) >= factor_above:
            name, factor = name_above, factor_above
    return f"{value / factor:,.{_decimals(step / factor, factor == scale.units[0][1])}f} {name}".rstrip()


def axis_labels(values: Sequence[float], scale: Scale) -> list[str]:
    """Return what stands beside the marks of an axis, all in one unit."""
    largest = max(map(abs, values))
    name, factor = next(((name, factor) for name, factor in reversed(scale.units) if largest >= factor), scale.units[0])
    step = (values[1] - values[0]) / factor if len(values) > 1 else 1.0
    decimals = next((number for number in range(_MOST_DECIMALS) if _is_whole(step * 10**number)), _MOST_DECIMALS)
    decimals = min(decimals, max(0, math.ceil(-math.log10(step)))) if step < 1 else decimals
    return [f"{value / factor:,.{decimals}f} {name}".rstrip() for value in values]


def _step(span: float, scale: Scale, most: int) -> float:
    wanted = max(span, 1e-12) / max(most - 1, 1)
    power = scale.base ** math.floor(math.log(wanted, scale.base))
    candidates = [power * step for step in (*scale.steps, scale.base)]
    return next(step for step in (*candidates, power * scale.base * scale.base) if step >= wanted * (1 - 1e-9))


def _decimals(step: float, is_smallest: bool) -> int:
    if is_smallest and step == 0:
        return 0
    return 1 if step == 0 or step >= 0.1 else min(_MOST_DECIMALS, math.ceil(-math.log10(step)))


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6
