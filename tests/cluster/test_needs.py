"""What a call needs, learned from the history of its function."""

from typing import Any

import pytest

from memtools import bounded_history
from memtools.cluster import Needs, needs_of
from memtools.cluster._needs import learn
from memtools.errors import ConfigError
from memtools.ledger import choose_meter

MIB = 2**20


@pytest.mark.parametrize(
    ("peaks", "taken"),
    [
        ([], 7),
        ([100] * 4, 7),  # too few
        ([100, 100, 100, 100, 200], 250),
        ([100] * 19 + [1_000], 125),  # one of twenty is above the 95th percentile
        ([100] * 18 + [1_000, 1_000], 1_250),
        ([0] * 5, 1),
    ],
)
def test_95_percent_of_the_runs_fit_with_a_margin(peaks: list[int], taken: int) -> None:
    found = learn("f", [(peak, True) for peak in peaks], 7)

    assert (found.value_bytes, found.runs, found.exact) == (taken, len(peaks), True)
    assert (found.peak_bytes is None) == (len(peaks) < 5)


def test_one_figure_that_is_not_exact_is_told() -> None:
    found = learn("f", [(8 * MIB, True)] * 4 + [(8 * MIB, False)], 7)

    assert not found.exact
    assert str(found) == "f: 10.0 MiB, from a peak of 8.0 MiB in 5 runs, not exact"


def test_default_is_called_one() -> None:
    assert str(Needs("f", MIB, 2, None, True)) == "f: 1.0 MiB, the default, after 2 runs"


@pytest.mark.skipif(choose_meter().name == "rss", reason="no meter here counts a call exactly")
def test_history_of_a_function_tells_what_it_needs() -> None:
    @bounded_history(10)
    def build(size_bytes: int) -> int:
        if size_bytes < 0:
            raise ValueError
        return len(bytes(size_bytes))

    assert needs_of(build, default="500 MiB").value_bytes == 500 * MIB
    for _ in range(5):
        build(8 * MIB)
        with pytest.raises(ValueError):  # noqa: PT011  # a call that fails is no measure of one that does not
            build(-1)
    found = needs_of(build, default="500 MiB")

    assert found.runs == 5
    assert found.value_bytes == pytest.approx(10 * MIB, rel=0.01)
    assert found.name.endswith("build")


@pytest.mark.parametrize("function", [len, bounded_history(10, key=lambda size: size)(lambda size: size)])
def test_function_without_one_history_is_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match="function="):
        needs_of(function, default=1)


@pytest.mark.parametrize("default", [0, "lots"])
def test_default_that_is_no_size_is_refused(default: Any) -> None:
    with pytest.raises(ConfigError, match="default="):
        needs_of(bounded_history(10)(lambda: None), default=default)
