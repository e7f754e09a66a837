"""The monitor's report: what was seen and done, and what to change, as text.

Leaves to others: the figures (`_summing`), the recommendations (`_advice`).
"""

from typing import Final

from memtools.monitor._advice import Recommendation
from memtools.monitor._statistics import MonitorStatistics
from memtools.readings import Level
from memtools.units import format_size

_MOST_OPERATIONS: Final = 10


def in_words(seen: MonitorStatistics, advice: tuple[Recommendation, ...]) -> str:
    """Return the report: a line for each fact, then the operations, then what to change."""
    lines = [f"{seen.name}: {seen.level.name} for {seen.level_since_s:.0f} s", *_memory(seen), *_acts(seen)]
    if seen.by_operation:
        lines += ["", "operations (calls, failed, mean, longest):"]
        lines += [
            f"  {one.name}: {one.calls:,}, {one.failures:,}, {one.mean_s * 1000:.3f} ms, {one.longest_s * 1000:.3f} ms"
            for one in seen.by_operation[:_MOST_OPERATIONS]
        ]
    lines += ["", "what to change:"]
    lines += [f"  - {one}" for one in advice] or ["  nothing that holds more than 1 MiB stands out"]
    return "\n".join(lines)


def _memory(seen: MonitorStatistics) -> list[str]:
    lines = [f"  in use     {seen.reading or 'not looked at yet'}"]
    if seen.limit is not None:
        lines.append(f"  limit      {seen.limit}")
    if seen.headroom is not None:
        lines.append(f"  headroom   {seen.headroom}")
    marks = (("warning", seen.warning_bytes), ("critical", seen.critical_bytes))
    shown = ", ".join(f"{name} at {format_size(entry)}" for name, entry in marks if entry is not None)
    return [*lines, f"  thresholds {shown or 'by free room only'}"]


def _acts(seen: MonitorStatistics) -> list[str]:
    changes = ", ".join(f"{seen.level_changes.get(level, 0)} to {level.name}" for level in Level)
    admissions, pauses = seen.admissions, seen.pauses
    tried = f"{seen.cleanups:,} and {seen.light_cleanups:,} light, {seen.cleanup_s:.2f} s"
    gained = f"{format_size(seen.freed_bytes)} given back, {seen.reclaims_in_vain:,} in vain"
    called = f"{len(seen.callbacks):,}, {seen.callback_failures:,} failures, {seen.callbacks_broken:,} left out"
    return [
        f"  levels     {changes}",
        f"  looks      {seen.looks:,} ({seen.missed_looks:,} refused), beat: {seen.beat}",
        f"  clean-ups  {tried}, {gained}",
        f"  collector  {pauses.pauses:,} pauses, longest {pauses.longest_s * 1000:.1f} ms",
        f"  callbacks  {called}",
        f"  admitted   {admissions.admitted:,}, {admissions.waiting:,} waiting, {admissions.inside:,} inside",
    ]
