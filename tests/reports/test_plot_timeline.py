"""A timeline as a plot of matplotlib."""

import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from memtools.errors import ConfigError, MissingExtraError
from memtools.reports.matplotlib import plot_timeline
from memtools.timelines import Timeline

MIB = 2**20

pytestmark = pytest.mark.once


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")

    yield pyplot

    pyplot.close("all")


@pytest.mark.leaves("descriptor", reason="matplotlib keeps the fonts open that it has drawn with")
def test_plot_has_band_limit_events_and_forecast(pyplot: Any, week: Timeline, forecast: Any) -> None:
    axes = plot_timeline(week, forecast=forecast(), thresholds={"warning": 400 * MIB})

    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["lowest to highest", "resident", "limit", "warning", "forecast"]
    assert len(axes.lines) == 1 + 1 + 1 + 3 + 1
    assert axes.get_ylabel() == "MiB"
    axes.figure.savefig(io.BytesIO(), format="svg")


def test_plot_goes_onto_given_axes(pyplot: Any, week: Timeline) -> None:
    given = pyplot.subplots()[1]

    assert plot_timeline(week, given) is given
    assert len(pyplot.get_fignums()) == 1


def test_distant_limit_is_left_out(pyplot: Any) -> None:
    timeline = Timeline(limit_bytes=100 * MIB)
    timeline.add(MIB, at_s=1_800_000_000.0)

    labels = [text.get_text() for text in plot_timeline(timeline).get_legend().get_texts()]

    assert labels == ["lowest to highest", "resident"]


def test_timeline_without_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="a timeline with samples"):
        plot_timeline(Timeline())


def test_missing_library_is_named(week: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'memtools\[plot\]'"):
        plot_timeline(week)
