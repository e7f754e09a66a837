"""Trends: the trend detector and other detectors on synthetic traces, the forecast, suggested thresholds, the cost.

`python tests/benchmarks/bench_trends.py` prints the tables of the held-out seeds: some minutes. `--seeds development`
is for choosing parameters, `--seeds reduced` for a quick look, `--families` adds a table by family. ADWIN and
Page-Hinkley are compared where river is installed.
"""

import argparse
from collections.abc import Callable

from _compare import Result
from _detectors import Detector, baselines
from _traces import DEVELOPMENT_SEEDS, HELD_OUT_SEEDS, REDUCED_SEEDS, make_trace, make_traces
from _trend_scores import (
    Alarm,
    BaselineAlarm,
    Cost,
    ForecastScore,
    Score,
    ThresholdScore,
    TrendAlarm,
    measure_cost,
    score_alarms,
)

SEEDS = {"held-out": HELD_OUT_SEEDS, "development": DEVELOPMENT_SEEDS, "reduced": REDUCED_SEEDS}
BALANCED, CONFIRMED = "trend detector, balanced", "trend detector, confirmed by owners"
MAX_US, MAX_WORST_US, MAX_STATE = 5.0, 1_000.0, 16 << 10


def alarms() -> dict[str, Callable[[], Alarm]]:
    """Return ours and the baselines by name."""

    def of_baseline(make: Callable[[], Detector]) -> Callable[[], Alarm]:
        return lambda: BaselineAlarm(make())

    return {
        **{name: of_baseline(make) for name, make in baselines().items()},
        "trend detector, low": lambda: TrendAlarm("low"),
        BALANCED: lambda: TrendAlarm("balanced"),
        "trend detector, high": lambda: TrendAlarm("high"),
        CONFIRMED: lambda: TrendAlarm("balanced", with_owners=True),
    }


def scores_table(scores: dict[str, Score]) -> str:
    """Return the scores as a Markdown table."""
    head = "| detector | P | R | F1 | found at half life | false alarms per healthy day |\n|---|---|---|---|---|---|"
    rows = [
        f"| {name} | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f} | {one.half_life:.3f} "
        f"| {one.alarms_a_day:.4f} |"
        for name, one in scores.items()
    ]
    return "\n".join([head, *rows])


def families_table(score: Score) -> str:
    """Return how often each family was suspected, as a Markdown table."""
    rows = [f"| {family} | {n} | {raised} | {half} |" for family, (n, raised, half) in score.by_family.items()]
    return "\n".join(["| family | traces | suspected | at half life |\n|---|---|---|---|", *rows])


def others_table(forecasts: ForecastScore, thresholds: ThresholdScore, cost: Cost) -> str:
    """Return the scores of the forecast and the thresholds, and the cost, as a Markdown table."""
    made = max(1, len(forecasts.errors))
    ours, static = (thresholds.notices[name] for name in ("suggested", "static 80 %"))
    short = [sum(notice < 10 for notice in notices) for notices in (ours, static)]
    rows = [
        ("time to the limit at half life, median error", f"{forecasts.median_error:.1%}"),
        ("probably not before: holds", f"{forecasts.lower_holds / made:.3f}"),
        ("whole interval: holds", f"{forecasts.covered / made:.3f}"),
        ("withheld", f"{forecasts.withheld} of {forecasts.withheld + len(forecasts.errors)}"),
        ("suggested threshold: leaks with less than 10 minutes' notice", f"{short[0]} of {len(ours)}"),
        ("static 80 %: the same", f"{short[1]} of {len(static)}"),
        ("suggested threshold: healthy time in warning", f"{thresholds.share('suggested'):.2%}"),
        ("static 80 %: the same", f"{thresholds.share('static 80 %'):.2%}"),
        ("a sample", f"{cost.median_us:.2f} us, at worst {cost.worst_us:.0f} us"),
        ("state of the detector", f"{cost.state_bytes:,} bytes"),
    ]
    return "\n".join(["| what | figure |\n|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)])


def measure_others(seeds: range) -> tuple[ForecastScore, ThresholdScore]:
    """Return the scores of the forecast and the thresholds."""
    forecasts, thresholds = ForecastScore(), ThresholdScore()
    for trace in make_traces(seeds):
        thresholds.add(trace)
        if trace.is_leak:
            forecasts.add(trace)
    return forecasts, thresholds


def run(rounds: int = 1) -> list[Result]:
    """Return the cost of a sample against its targets, for the table of all benchmarks; scores come from `main`."""
    cost = measure_cost(make_trace("linear with daily cycle", HELD_OUT_SEEDS[0]))
    return [
        Result("a sample of the trend detector", "5 us", cost.median_us / MAX_US, 1.0, "time"),
        Result("the dearest sample", "1 ms", cost.worst_us / MAX_WORST_US, 1.0, "time"),
        Result("the state of the detector", "16 KiB", cost.state_bytes / MAX_STATE, 1.0, "bytes"),
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", choices=SEEDS, default="held-out")
    parser.add_argument("--families", action="store_true")
    options = parser.parse_args()
    seeds = SEEDS[options.seeds]
    scores = score_alarms(make_traces(seeds), alarms())
    print(f"{options.seeds} seeds, {len(seeds)} of each family\n\n{scores_table(scores)}\n", flush=True)
    if options.families:
        for name in (BALANCED, CONFIRMED):
            print(f"{name}\n\n{families_table(scores[name])}\n", flush=True)
    cost = measure_cost(make_trace("linear with daily cycle", seeds[0]))
    print(others_table(*measure_others(seeds), cost))


if __name__ == "__main__":
    main()
