"""A few usages side by side: of one scope, of some calls, of the tasks of a task scope.

Covers: the forms of the big report for a handful of `Usage` records. Leaves to others: taking them (`scope.usage`).
"""

import json
from collections.abc import Iterable, Iterator

from memtools.ledger import Usage
from memtools.records import record
from memtools.reports._html import html_rows
from memtools.reports._rows import Row
from memtools.reports._text import text_rows
from memtools.units import format_size


@record
class UsageTable:
    """Usages as the rows of a table, in the order in which they were given.

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
        notes=() if usage.exact else (usage.note or "nobody knows why",),
    )
