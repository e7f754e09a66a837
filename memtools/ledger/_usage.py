"""What an owner used: one frozen record."""

from typing import Final, TypeAlias

from memtools.records import as_dict, record
from memtools.units import format_size

# The fields of a `Usage` in their order: what an ended owner keeps until somebody asks for the record.
Figures: TypeAlias = tuple[str, int, int, int | None, int | None, int, float, int, str, bool, str]
RETAINED: Final = 1
PEAK: Final = 2


@record
class Usage:
    """What an owner used between its opening and its end (or until now, while it is open).

    Attributes:
        name: the owner's name.
        retained_bytes: bytes that this owner and its children allocated and that are still alive.
        peak_bytes: the highest simultaneous live bytes of owner and children.
        allocated_bytes: all bytes ever allocated, or None where the meter cannot see it.
        freed_bytes: all bytes ever freed, or None where the meter cannot see it.
        resident_delta_bytes: change of the resident memory of the whole process, never the owner's own; with the native
            meter from readings that may be a millisecond old.
        duration_s: wall time in seconds.
        steps: for coroutines the number of steps, otherwise 0.
        meter: `"native"`, `"traced"` or `"resident"`.
        exact: False where other threads or tasks may have leaked in.
        note: why the figures are not exact; empty when they are.
    """

    name: str
    retained_bytes: int
    peak_bytes: int
    allocated_bytes: int | None
    freed_bytes: int | None
    resident_delta_bytes: int
    duration_s: float
    steps: int
    meter: str
    exact: bool
    note: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)

    def __str__(self) -> str:
        doubt = "" if self.exact else f" ({self.note})"
        return (
            f"{self.name}: peak {format_size(self.peak_bytes)}, retained {format_size(self.retained_bytes)}, "
            f"{self.duration_s:.3f} s, {self.meter}{doubt}"
        )
