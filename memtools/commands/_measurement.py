"""What is measured of one process of a run: from its start, or from the fork that made it, to its report.

A file of its own because the process that was started and its child processes are measured alike.
"""

from importlib import import_module

from memtools.leaks import Diagnosis
from memtools.leaks._investigate import BackgroundInvestigation
from memtools.ledger import AccountStatistics, Meter, statistics
from memtools.ledger._instrument import GlobalTaskTracking, track_all_loops
from memtools.ledger._ledger import LedgerStatistics, close_owner, forget_accounts, open_owner
from memtools.readings import ProcessMemory, ResidentSplit, read_process
from memtools.readings._resident import split_resident_if_known
from memtools.reports import Report, report


class Measurement:
    """The owner of the whole program, what its figures are counted from, and the search for leaks.

    Args:
        title: what the report is about.
        meter: what counts.
        leaks: whether to search for leaks meanwhile.
        is_fork: whether this process has just been forked from a measured one: the meter counts already, and the
            accounts that it has inherited are dropped, since they are those of its parent.

    Attributes:
        failed: whether the program has ended with an error.
    """

    def __init__(self, title: str, meter: Meter, *, leaks: bool, is_fork: bool = False) -> None:
        self.failed = False
        self._title = title
        self._meter = meter
        self._tracking: GlobalTaskTracking | None = None
        self._split_since: ResidentSplit | None = None
        self._untracked_before: dict[str, int] = {}
        if is_fork:
            forget_accounts()
            self._untracked_before = statistics().unattributed_bytes
        else:
            meter.acquire()
            self._tracking = track_all_loops(meter)
            self._split_since = split_resident_if_known()
        self._since: ProcessMemory = read_process()
        # Below the active owner, also in a fork: a budget of the program around the fork holds in the child, too.
        self._owner = open_owner(title, "scope", meter=meter)
        self._is_fork = is_fork
        self._investigation = BackgroundInvestigation() if leaks else None
        if self._investigation is not None:
            import_module("ctypes")  # the search loads it on first need: the program may have one of that name
            self._investigation.start()

    def mark_program_end(self) -> None:
        """Record for the search for leaks that the program's own code has ended."""
        if self._investigation is not None:
            self._investigation.mark_program_end()

    def find_leaks(self, *, apart_from: frozenset[int] = frozenset()) -> Diagnosis | None:
        """End the search for leaks and return what it found; None where there was none.

        Args:
            apart_from: the child processes that have searched themselves.

        Raises:
            RuntimeError: when the search has failed.
        """
        return None if self._investigation is None else self._investigation.finish(apart_from=apart_from)

    def report(
        self,
        *,
        caveats: tuple[str, ...] = (),
        title: str = "",
        is_end: bool = False,
        identity: tuple[tuple[str, str], ...] = (),
    ) -> Report:
        """Return the report up to now.

        Args:
            caveats: sentences on what the figures do not cover.
            identity: what program it is, where the report says so.
            title: what the report is about; by default that of the start.
            is_end: whether this is the end of the program: its owner is closed, and the meter may stop.
        """
        if is_end:
            close_owner(self._owner, failed=self.failed)
        found = report(
            title=title or self._title,
            since=self._since,
            split_since=self._split_since,
            ledger=self._statistics(),
            caveats=caveats,
            identity=identity,
        )
        if is_end and self._tracking is not None:
            self._tracking.close()
            self._meter.release()
        return found

    def _statistics(self) -> LedgerStatistics:
        known = statistics()
        if not self._is_fork:
            return known
        # What the parent has opened and not closed is not this process's: only what is below the owner of the fork.
        before = self._untracked_before
        return LedgerStatistics(
            accounts=_find(known.accounts, self._owner.path),
            open_owners=known.open_owners,
            unattributed_bytes={name: size - before.get(name, 0) for name, size in known.unattributed_bytes.items()},
            refused_blocks=known.refused_blocks,
            ignored_stops=known.ignored_stops,
        )


def _find(accounts: tuple[AccountStatistics, ...], path: tuple[str, ...]) -> tuple[AccountStatistics, ...]:
    name, *rest = path
    found = tuple(account for account in accounts if account.name == name)
    if not rest:
        return tuple(account for account in found if account.kind == "scope")
    return tuple(below for account in found for below in _find(account.children, tuple(rest)))
