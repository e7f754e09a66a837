"""Statistics that a few odd figures do not move: the median, Kendall's tau, the slope of Theil and Sen, noise.

A file of its own because the trend detector, the forecast and the anomalies use them. Standard library only: for 32
points it is as fast as scipy, which takes 60 MiB to import.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

_NORMAL: Final = 1.4826  # the standard deviation of a normal distribution, in median absolute deviations
_DIFFERENCE: Final = 2**0.5  # the difference of two figures fluctuates by so much more than each of them


def median(values: Sequence[float]) -> float:
    """Return the median of at least one figure."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def kendall_tau(values: Sequence[float]) -> float:
    """Return Kendall's tau-a of figures against their order: 1 if each is above all before it, 0 without a trend.

    It is the statistic of the test of Mann and Kendall, divided by the number of pairs: H. B. Mann, Nonparametric tests
    against trend, Econometrica 13 (1945). Two equal figures count as no evidence. 32 figures take some 30 us.
    """
    number = len(values)
    if number < 2:
        return 0.0
    above = below = 0
    for place, value in enumerate(values):
        for later in values[place + 1 :]:
            if later > value:
                above += 1
            elif later < value:
                below += 1
    return 2 * (above - below) / (number * (number - 1))


def theil_sen(values: Sequence[float]) -> float:
    """Return the median of the slopes of all pairs, per step of equally spaced figures; 0.0 for fewer than two.

    P. K. Sen, Estimates of the regression coefficient based on Kendall's tau, JASA 63 (1968). Three figures in ten may
    be anything.
    """
    if len(values) < 2:
        return 0.0
    slopes = [
        (later - value) / steps
        for place, value in enumerate(values)
        for steps, later in enumerate(values[place + 1 :], 1)
    ]
    return median(slopes)


def noise_of(values: Sequence[float]) -> float:
    """Return how far figures fluctuate from one to the next, as a standard deviation; steps and trends do not count.

    It is the median absolute deviation of the differences, scaled to that of a single figure.
    """
    differences = [after - before for before, after in pairwise(values)]
    if not differences:
        return 0.0
    middle = median(differences)
    return _NORMAL * median([abs(one - middle) for one in differences]) / _DIFFERENCE
