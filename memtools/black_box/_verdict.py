"""How a process has ended, and how that is known.

A file of its own because it decides by facts alone, whichever way they were read.
"""

from typing import Final

from memtools._records import record
from memtools.black_box._layout import ENDED
from memtools.black_box._post_mortem import PastReading, Verdict
from memtools.units import format_size

_NEAR: Final = 0.95  # of the limit


@record
class Evidence:
    """What is known of the end of a process.

    Attributes:
        state: the state that the file has.
        is_alive: whether the process runs.
        is_other_boot: whether the machine was started since, or is another one.
        readings: the readings, the last one last.
        counted_bytes: what the ledger had counted at the end; None without one.
        oom_kills_now: how many processes of its cgroup the kernel has killed up to now; None where that is not known.
        cgroup_limit: the limit of its own cgroup; None where it had none.
        resident_at_open: resident bytes when the file was made.
    """

    state: int
    is_alive: bool
    is_other_boot: bool
    readings: tuple[PastReading, ...]
    counted_bytes: int | None
    oom_kills_now: int | None
    cgroup_limit: int | None
    resident_at_open: int | None

    def estimated_bytes(self) -> int | None:
        """Return what was in use at the end: the last reading, and what was counted since."""
        if not self.readings:
            return self.counted_bytes
        last = self.readings[-1]
        if self.counted_bytes is None or last.counted_bytes is None:
            return last.resident_bytes
        return max(last.resident_bytes + max(0, self.counted_bytes - last.counted_bytes), self.counted_bytes)

    def native_bytes(self) -> int | None:
        """Return by how much resident memory had grown more than what was counted, at the last reading.

        That is memory of C libraries, and what the allocator keeps: not the blocks of any owner.
        """
        if not self.readings or self.resident_at_open is None or self.readings[-1].counted_bytes is None:
            return None
        last = self.readings[-1]
        return max(0, last.resident_bytes - self.resident_at_open - (last.counted_bytes or 0))


def judge(evidence: Evidence) -> tuple[Verdict, str]:
    """Return the verdict, and how it is known."""
    if evidence.state == ENDED:
        return "ended", "it has written a regular end"
    if evidence.is_alive:
        return "alive", "its process is there"
    last = evidence.readings[-1] if evidence.readings else None
    restarted = "; the machine was started again since, or is another one" if evidence.is_other_boot else ""
    known = None if last is None else last.oom_kills
    if known is not None and evidence.oom_kills_now is not None and evidence.oom_kills_now > known:
        more = evidence.oom_kills_now - known
        return "oom-killed", (
            f"no end was written, and since its last reading the kernel has killed {more} process"
            f"{'es' if more > 1 else ''} of its cgroup for want of memory"
        )
    limit = None if last is None else last.limit_bytes
    if last is not None and limit:
        estimate = evidence.estimated_bytes() or 0
        if estimate >= _NEAR * limit:
            return "oom-likely", (
                f"no end was written, and about {format_size(estimate)} were in use or asked for, of a limit of "
                f"{format_size(limit)}{restarted}"
            )
        # Where the limit is another one, the use of the cgroup says nothing of it.
        is_of_cgroup = limit == evidence.cgroup_limit
        if is_of_cgroup and last.usage_bytes is not None and last.usage_bytes >= _NEAR * limit:
            return "oom-likely", (
                f"no end was written, and all processes of its cgroup used {format_size(last.usage_bytes)} of "
                f"{format_size(limit)}{restarted}"
            )
    return "killed", (
        "no end was written, and memory was not short: another SIGKILL, a crash, SIGTERM without a handler, or "
        f"os._exit{restarted}"
    )
