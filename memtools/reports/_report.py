"""The report as a frozen record, and tables of single usages."""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from memtools._records import record
from memtools._text import printable, truncate_middle
from memtools.analysis import Leftover
from memtools.analysis._growth_by_call import find_leftovers
from memtools.errors import ReadingError
from memtools.ledger import Usage, statistics
from memtools.ledger._ledger import LedgerStatistics
from memtools.readings import ProcessMemory, ResidentSplit, read_process, split_resident
from memtools.reports._html import html_rows, html_table
from memtools.reports._rows import Growth, Row, flat_rows, measure_growth, notes_of, scope_rows
from memtools.reports._text import text_report, text_rows
from memtools.units import format_size

_SCHEMA = 1


@record
class Report:
    """The memory use per scope, per task and per function, and of the process as a whole.

    ```python
    from memtools.reports import report

    print(report())
    ```

    Attributes:
        title: what the report is about.
        scopes: the tree of scopes.
        tasks: one row per task name.
        functions: one row per decorated function.
        process: the process as a whole.
        leftovers: the functions and tasks whose every call leaves something behind, as far as the meter knows; the
            largest first.
        caveats: sentences on what these figures do not cover.
        at_s: when it was taken, in seconds since the epoch; 0 if unknown.
        duration_s: from the first reading to the last, in seconds; None without a first one.
        identity: what program it is, as (label, text): process and host, versions, command line without secrets.

    Rows are sorted by their live bytes, to a hundredth of a MiB, then by their peaks. A row's peak is that of its
    largest call, its retained bytes and its time are sums. Inexact figures carry a `~`. Names are kept as they were
    given: to show them yourself, escape them, as `str()` and `_repr_html_()` do.
    """

    title: str
    scopes: tuple[Row, ...]
    tasks: tuple[Row, ...]
    functions: tuple[Row, ...]
    process: Growth
    leftovers: tuple[Leftover, ...] = ()
    caveats: tuple[str, ...] = ()
    at_s: float = 0.0
    duration_s: float | None = None
    identity: tuple[tuple[str, str], ...] = ()

    @property
    def sections(self) -> tuple[tuple[str, tuple[tuple[int, Row], ...]], ...]:
        """The three views with their headings: pairs of depth and row, parents first."""
        return (
            ("scope", tuple(pair for row in self.scopes for pair in row.walk())),
            ("task", tuple((0, row) for row in self.tasks)),
            ("function", tuple((0, row) for row in self.functions)),
        )

    @property
    def peak_bytes(self) -> int:
        """The highest peak of all rows: the 100% of the bars."""
        return max((row.peak_bytes for row in self._rows()), default=0)

    @property
    def meters(self) -> tuple[str, ...]:
        """The names of the meters, in order of appearance."""
        return tuple(dict.fromkeys(meter for row in self._rows() for meter in row.meters))

    @property
    def notes(self) -> dict[str, int]:
        """Why figures are not exact, each with its number of rows."""
        return notes_of(self._rows())

    def to_text(self, *, width: int | None = None, ascii_only: bool | None = None, limit: int = 20) -> str:
        """Return the report as a table for a terminal, without colours.

        Args:
            width: columns; by default the terminal's, between 80 and 140.
            ascii_only: draw bars and marks with ASCII; by default where standard output can show nothing else.
            limit: rows per view; those left out are counted.
        """
        return text_report(self, width=width, ascii_only=ascii_only, max_rows=limit)

    def to_dict(self) -> dict[str, object]:
        """Return the whole report, no row left out, as a dict that JSON can hold."""
        return {
            "schema": _SCHEMA,
            "title": self.title,
            "at_s": self.at_s,
            "duration_s": self.duration_s,
            "identity": dict(self.identity),
            "meters": list(self.meters),
            "process": self.process.to_dict(),
            "leftovers": [leftover.to_dict() for leftover in self.leftovers],
            "scopes": [row.to_dict() for row in self.scopes],
            "tasks": [row.to_dict() for row in self.tasks],
            "functions": [row.to_dict() for row in self.functions],
            "caveats": list(self.caveats),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the whole report as JSON, in ASCII."""
        return json.dumps(self.to_dict(), indent=indent)

    def _rows(self) -> Iterator[Row]:
        return (row for _, rows in self.sections for _, row in rows)

    def _repr_html_(self) -> str:
        return html_table(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # Any: IPython is optional
        printer.text(repr(self) if cycle else self.to_text())

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        title = truncate_middle(printable(self.title), 60)
        return (
            f"<Report {title!r}: {len(self.scopes)} scopes, {len(self.tasks)} tasks, {len(self.functions)} functions, "
            f"peak {format_size(self.peak_bytes)}, resident {format_size(self.process.resident_bytes)}>"
        )


def report(
    *,
    title: str = "this process",
    since: ProcessMemory | None = None,
    split_since: ResidentSplit | None = None,
    ledger: LedgerStatistics | None = None,
    caveats: tuple[str, ...] = (),
    identity: tuple[tuple[str, str], ...] | None = None,
) -> Report:
    """Return the memory use of this process up to now.

    Args:
        title: what the report is about.
        since: an earlier reading (`memtools.readings.read_process()`), from which growth is counted.
        split_since: an earlier `memtools.readings.split_resident()`: with it the growth that no scope, task or function
            explains is split by what it consists of.
        ledger: statistics of the ledger taken earlier; by default those of now.
        caveats: sentences on what the figures do not cover, which the caller knows.
        identity: what program it is, as (label, text); by default process and host, versions, and the command line
            without what looks like a secret.

    Raises:
        ReadingError: when the memory of the process cannot be read.

    Threads: safe. Cost: a copy of the accounts, at most 4,096; with `split_since` that of `split_resident()`.
    """
    known = statistics() if ledger is None else ledger
    now = read_process()  # before the split, which needs memory itself
    split = None
    if split_since is not None:
        try:
            split = split_resident()
        except ReadingError as error:
            caveats = (*caveats, f"what the growth consists of is not known: {error}")
    return Report(
        title=title,
        scopes=scope_rows(known.accounts),
        tasks=flat_rows(known.accounts, "task"),
        functions=flat_rows(known.accounts, "call"),
        process=measure_growth(known, now, since, split, split_since),
        leftovers=find_leftovers(known.accounts),
        caveats=caveats,
        at_s=time.time(),
        duration_s=None if since is None else now.at - since.at,
        identity=_identity() if identity is None else identity,
    )


def _identity() -> tuple[tuple[str, str], ...]:
    from memtools._identity import identity  # it loads the metadata of distributions: only where a report is taken

    return identity()


@record
class UsageTable:
    """A few usages as the rows of a table, in the given order.

    ```python
    from memtools.reports import UsageTable
    from memtools.scopes import memory_scope

    with memory_scope("import") as scope:
        rows = [line.split(",") for line in ["a,b"] * 1000]
    print(UsageTable((scope.usage,)))
    ```
    """

    usages: tuple[Usage, ...]

    @classmethod
    def of(cls, usages: Iterable[Usage]) -> "UsageTable":
        """Return a table of any number of usages."""
        return cls(tuple(usages))

    def to_text(self, *, width: int | None = None, ascii_only: bool | None = None) -> str:
        """Return the table for a terminal; the arguments are those of `Report.to_text`."""
        return text_rows("usage", tuple(map(_row, self.usages)), width=width, ascii_only=ascii_only)

    def to_dict(self) -> dict[str, object]:
        """Return the usages as a dict that JSON can hold."""
        return {"usages": [usage.to_dict() for usage in self.usages]}

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the usages as JSON, in ASCII."""
        return json.dumps(self.to_dict(), indent=indent)

    def _repr_html_(self) -> str:
        return html_rows("usage", tuple(map(_row, self.usages)))

    def __iter__(self) -> Iterator[Usage]:
        return iter(self.usages)

    def __len__(self) -> int:
        return len(self.usages)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        highest = max((usage.peak_bytes for usage in self.usages), default=0)
        return f"<UsageTable of {len(self.usages)}, highest peak {format_size(highest)}>"


def _row(usage: Usage) -> Row:
    return Row(
        name=usage.name,
        calls=1,
        active=0,
        failed=0,
        peak_bytes=usage.peak_bytes,
        retained_bytes=usage.retained_bytes,
        duration_s=usage.duration_s,
        meters=(usage.meter,),
        notes=() if usage.exact else (usage.note or "reason unknown",),
    )
