"""The words and figures that text and HTML share.

Covers: sizes in MiB, durations, bars, the sentences about the process. Leaves to others: where they are put (`_text`,
`_html`).
"""

from collections.abc import Sequence
from typing import Final

from memtools.analysis import Leftover
from memtools.reports._growth import Growth
from memtools.reports._rows import Row
from memtools.reports._visible import visible
from memtools.units import format_size

_PEAK: Final = "peak: the most that one call had alive at once, with all that it called"
_RETAINED: Final = "retained: what was alive of it when each call ended, added up"
_ALIVE: Final = "still alive: what of that, and of what open calls hold, is alive now, whoever keeps it"
_NOT_KNOWN: Final = "still alive: not shown, as only the native meter knows what becomes of a block after the call"
_TIME: Final = "time: from the begin to the end of each call, others in between, added up"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def legend(rows: Sequence[Row], *, shows_retained: bool) -> list[str]:
    """Return what the columns mean that are there, and why one is not."""
    is_known = any(row.live_bytes is not None for row in rows)
    lines = [_PEAK, _RETAINED] if shows_retained else [_PEAK]
    return [*lines, _ALIVE if is_known or not rows else _NOT_KNOWN, _TIME]


def leftover_line(leftover: Leftover) -> str:
    """Return who leaves how much behind, in one line; the name is to be made harmless."""
    return (
        f"`{visible(leftover.name)}` leaves {format_size(leftover.per_call_bytes)} behind per call; "
        f"{leftover.calls:,} calls, {format_size(leftover.left_bytes)} still alive"
    )


def mib(size_bytes: float) -> str:
    """Return a size in MiB, without the unit: `1,234.56`."""
    text = f"{size_bytes / 2**20:,.2f}"
    return "0.00" if text == "-0.00" else text


def marked(size_bytes: float | None, row: Row) -> str:
    """Return a size in MiB with a `~` in front where the row is not exact; `-` where it is not known."""
    if size_bytes is None:
        return "-"
    return mib(size_bytes) if row.exact else f"~{mib(size_bytes)}"


def seconds(duration_s: float) -> str:
    """Return a duration: `0.012 s`, `12.3 s`, `1:02:03`."""
    if duration_s < 10:
        return f"{duration_s:.3f} s"
    if duration_s < 1000:
        return f"{duration_s:.1f} s"
    minutes, rest = divmod(round(duration_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def share(part: float, whole: float) -> float:
    """Return `part / whole` between 0 and 1; 0 of nothing."""
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0


def bar(fraction: float, width: int, *, ascii_only: bool) -> str:
    """Return a bar of at most `width` columns; anything above nothing shows."""
    if ascii_only:
        full = round(fraction * width) or (1 if fraction > 0 else 0)
        return "#" * full
    eighths = round(fraction * width * 8) or (1 if fraction > 0 else 0)
    full, rest = divmod(eighths, 8)
    return _EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")


def process_lines(process: Growth) -> list[tuple[str, str, str]]:
    """Return what is known of the process as a whole: label, size in MiB, explanation."""
    lines = [("resident now", process.resident_bytes, ""), ("resident peak", process.peak_bytes, "since it began")]
    optional = [
        ("resident growth", process.resident_growth_bytes, "during the run, of the whole process; of it:"),
        ("  owned", process.owned_bytes, "by the scopes, tasks and functions above"),
        ("  nobody's", process.nobody_bytes, "allocated in Python while no owner had the turn"),
        ("  the meter's own", process.meter_bytes, "tables of tracemalloc"),
        ("  unattributed", process.unattributed_bytes, "C libraries, fragments, interpreter: no block of Python's"),
    ]
    lines += [(label, size, why) for label, size, why in optional if size is not None]
    if process.resident_growth_bytes is None:
        # Without a first reading there is no growth that these could be parts of.
        return [(label.strip(), mib(size), why) for label, size, why in lines]
    return [(label, mib(size), why) for label, size, why in lines]
