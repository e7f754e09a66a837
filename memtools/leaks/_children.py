"""Child processes beside an investigation: whether their resident memory grows.

Nothing is known of what is in them. An investigation in each of them, such as `Investigator`, tells more.

A file of its own because the diagnosis has what the investigation finds here, and imports none of its steps.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from memtools._records import record
from memtools._text import printable
from memtools.analysis._leak_kind import MIN_SAMPLES, LeakVerdict, judge_leak
from memtools.leaks._samples import Samples
from memtools.readings._counters import Counters

if TYPE_CHECKING:
    from memtools.readings._psutil import Child

_MAX_CHILDREN: Final = 16  # each costs some 20 us a sample


@record
class ChildProcess:
    """A child process and what its resident memory does.

    Attributes:
        pid: its process id.
        name: its name, as the system gives it.
        verdict: the verdict on its resident memory; of unknown kind if there were too few samples.
    """

    pid: int
    name: str
    verdict: LeakVerdict

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {
            "pid": self.pid,
            "name": self.name,
            "verdict": self.verdict.kind.value,
            "bytes_per_s": round(self.verdict.bytes_per_s),
        }


class ChildSamples:
    """Resident memory of up to 16 child processes, and of those that they started, over time.

    Attributes:
        left_out: how many more there were at the last look.
    """

    def __init__(self) -> None:
        self._samples: dict[int, Samples] = {}
        self._names: dict[int, str] = {}
        self._alive: list[Child] = []
        self.left_out = 0

    def look(self) -> None:
        """Find the child processes that there are now: some 10 ms for 200 processes of the machine."""
        from memtools.readings._psutil import children  # psutil is loaded on first need

        found = children()
        new = [child for child in found if child.pid not in self._samples]
        room = _MAX_CHILDREN - len(self._samples)
        self.left_out = max(len(new) - room, 0)
        for child in new[:room]:
            self._samples[child.pid] = Samples()
            self._names[child.pid] = printable(child.name())
        self._alive = [child for child in found if child.pid in self._samples]

    def sample(self, at: float) -> None:
        """Read the resident memory of each; one that has ended is left out from then on.

        Args:
            at: seconds of `time.monotonic()`.
        """
        for child in list(self._alive):
            resident = child.resident_bytes()
            if resident:
                self._samples[child.pid].add(Counters(at, resident, 0, None, None))
            else:
                self._alive.remove(child)

    def processes(self, *, until: float, is_ending: bool, apart_from: Collection[int] = ()) -> tuple[ChildProcess, ...]:
        """Return each child process with the verdict on it, by process id.

        One that ended before there were samples enough is left out: what it held was given back.

        Args:
            until: samples from then on are left out, in seconds of `time.monotonic()`.
            is_ending: see `judge_leak`.
            apart_from: the ids of those that are left out.
        """
        alive = {child.pid for child in self._alive}
        found: list[ChildProcess] = []
        for pid, samples in sorted(self._samples.items()):
            kept = samples.until(until)
            if pid in apart_from:
                continue
            if pid in alive or len(kept) >= MIN_SAMPLES:
                found.append(ChildProcess(pid, self._names[pid], judge_leak(kept, is_ending=is_ending)))
        return tuple(found)
