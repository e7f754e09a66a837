"""How much more memory this process can take before it meets the first wall.

Leaves to others: where the walls are found (`_limit_reader`).
"""

from collections.abc import Iterable

from memtools.readings._limit import LimitSource
from memtools.records import record
from memtools.units import format_size


@record
class LevelRoom:
    """What is left below one wall; limit and usage are of the same level.

    Attributes:
        source: who set the limit.
        path: the file that says so, if a file does.
        level: how many cgroups above our own it stands; None where it is none of a cgroup, or of one that cannot be
            seen from here.
        limit_bytes: the wall.
        used_bytes: what counts against it, of all who live below it; None where that cannot be read.
        inactive_file_bytes: the part of `used_bytes` that is file cache, which the kernel drops before it kills; None
            where that cannot be read.
    """

    source: LimitSource
    path: str | None
    level: int | None
    limit_bytes: int
    used_bytes: int | None
    inactive_file_bytes: int | None

    @property
    def room_bytes(self) -> int | None:
        """Bytes to the wall, negative beyond it; None where the usage is not known."""
        if self.used_bytes is None or self.inactive_file_bytes is None:
            return None
        # The two are read one after the other: cache that grew in between must not make the usage negative.
        return self.limit_bytes - max(self.used_bytes - self.inactive_file_bytes, 0)


@record
class Headroom:
    """How much more memory this process can take before it meets the first wall.

    Attributes:
        value_bytes: the least of all rooms, negative beyond a wall; None when no room is known.
        source: whose room it is; `LimitSource.PHYSICAL` when the machine itself is short.
        levels: the room below each wall, our own cgroup first.
        host_available_bytes: what the machine can give without swapping; None when it does not say.
        gaps: files that exist and could not be read or understood; less room may hide in them.
    """

    value_bytes: int | None
    source: LimitSource
    levels: tuple[LevelRoom, ...]
    host_available_bytes: int | None
    gaps: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value_bytes is None:
            return "no headroom known"
        return f"{format_size(self.value_bytes)} left ({self.source})"


def least_room(levels: Iterable[LevelRoom], available_bytes: int | None, gaps: Iterable[str]) -> Headroom:
    """Return the headroom that the tightest of `levels` and the machine leave."""
    kept = tuple(levels)
    rooms = [(level.room_bytes, level.source) for level in kept if level.room_bytes is not None]
    if available_bytes is not None:
        rooms.append((available_bytes, LimitSource.PHYSICAL))

    value, source = min(rooms, key=lambda room: room[0], default=(None, LimitSource.UNKNOWN))
    return Headroom(value, source, kept, available_bytes, tuple(gaps))
