"""What the child processes of a run have left, as text, JSON and HTML behind the report of the first process."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from memtools._charts import html_escape
from memtools._records import record
from memtools._text import display_width, printable, truncate_middle
from memtools.commands._children import Family
from memtools.readings._shares import memory_share, process_start
from memtools.reports._text import format_mib, terminal_width

_MAX_TEXTS: Final = 8  # whole reports on a terminal
_MAX_LINES: Final = 40
_MAX_NAMES: Final = 5
_MIN_NAME_WIDTH: Final = 20
_HEADINGS: Final = ("pid", "peak MiB", "resident", "private", "growth", "live", "leaks", "end")
_ENDED: Final = "ended"
_KILLED: Final = "killed"
_RUNNING: Final = "running"
_LEGEND: Final = (
    "resident: with the pages that it shares with its parent; private: what no other process has",
    "growth: of resident memory since its start or its fork; live: allocated by Python since then, and not freed",
)
_LEGEND_KILLED: Final = "killed: by a signal, os.abort or exec; figures, where there are any, are of a second before"


@record
class ChildReport:
    """What is known of one child process.

    Attributes:
        pid: its process id.
        title: what it is called.
        end: `"ended"`, `"killed"` (by a signal, or replaced by another program), or `"running"`.
        fields: what it has left, as it was written; little or nothing where it has left no report.
    """

    pid: int
    title: str
    end: str
    fields: dict[str, Any]  # Any: JSON

    @property
    def leaks(self) -> str:
        """Its own verdict on leaks in a word."""
        found = self.fields.get("leaks")
        if found is None:
            return "-"
        return "LEAK" if found["leaks"] else "none" if found["verdict"] != "unknown" else "unknown"

    def process(self, name: str) -> int | None:
        """Return a figure of the process as a whole, in bytes; None where it is not known."""
        figure: int | None = self.fields["report"]["process"].get(name) if "report" in self.fields else None
        return figure

    def figures(self) -> list[str]:
        """Return its line of the table, one text for each heading."""
        sizes = [
            self.process("peak_bytes"),
            self.process("resident_bytes"),
            self.fields.get("private_bytes"),
            self.process("resident_growth_bytes"),
            self.process("owned_bytes"),
        ]
        return [str(self.pid), *("-" if size is None else format_mib(size) for size in sizes), self.leaks, self.end]

    def to_dict(self) -> dict[str, object]:
        """Return what is known of it as a dict that JSON can hold."""
        return {
            "pid": self.pid,
            "parent": self.fields.get("parent"),
            "title": self.title,
            "end": self.end,
            "private_bytes": self.fields.get("private_bytes"),
            "report": self.fields.get("report"),
            "leaks": self.fields.get("leaks"),
        }


@record
class FamilyReport:
    """What is known of all child processes; false where there were none.

    Attributes:
        children: those that measured themselves, in order of their start.
        others: the names of those that did not.
    """

    children: tuple[ChildReport, ...]
    others: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.children or self.others)

    def searched(self) -> frozenset[int]:
        """Return the ids of those that have a verdict of their own on leaks."""
        return frozenset(child.pid for child in self.children if child.fields.get("leaks") is not None)

    def caveats(self) -> tuple[str, ...]:
        """Return in a sentence what was not looked at."""
        if not self.others:
            return ()
        names = Counter(self.others).most_common()
        told = ", ".join(name if times == 1 else f"{name} ({times} times)" for name, times in names[:_MAX_NAMES])
        more = f" and {len(names) - _MAX_NAMES} others" if len(names) > _MAX_NAMES else ""
        plural = "es were" if len(self.others) > 1 else " was"
        return (
            f"{len(self.others)} child process{plural} not looked at, and their memory is in no figure: {told}{more}",
        )

    def to_dicts(self) -> list[dict[str, object]]:
        """Return what is known of each that measured itself, as dicts that JSON can hold."""
        return [child.to_dict() for child in self.children]

    def to_text(self, *, width: int | None, ascii_only: bool) -> str:
        """Return the reports of those that used most, and a table of all.

        Args:
            width: columns; by default the terminal's.
            ascii_only: whether it has ASCII characters only.
        """
        largest = sorted((child for child in self.children if "text" in child.fields), key=_peak, reverse=True)
        shown = largest[:_MAX_TEXTS]
        texts = [f"{child.fields['text']}\n" for child in self.children if child in shown]
        if len(largest) > len(shown):
            texts.append(f"{len(largest) - len(shown)} more reports of child processes are in the file of --json\n")
        return "\n".join([*texts, *self._table(terminal_width() if width is None else width, ascii_only=ascii_only)])

    def html(self) -> str:
        """Return the table, and the report of each, as HTML for the page of the run; empty where there were none."""
        if not self.children:
            return ""
        head = "".join(f"<th scope=col>{html_escape(heading)}" for heading in _HEADINGS)
        lines = [
            f"<tr><td class=t>{html_escape(printable(child.title))}"
            + "".join(f"<td>{html_escape(figure)}" for figure in child.figures())
            for child in self.children
        ]
        table = f"<table><thead><tr><th scope=col class=t>child processes{head}<tbody>{''.join(lines)}</table>"
        reports = [
            f"<details><summary>{html_escape(printable(child.title))}, process {child.pid}</summary>"
            f"{child.fields['html']}</details>"
            for child in self.children
            if "html" in child.fields
        ]
        notes = [f"<p class=note>{html_escape(note)}" for note in (*_LEGEND, _LEGEND_KILLED)]
        return "".join([table, *notes, *reports])

    def _table(self, width: int, *, ascii_only: bool) -> Iterator[str]:
        if not self.children:
            return
        shown = self.children[:_MAX_LINES]
        lines = [list(_HEADINGS), *(child.figures() for child in shown)]
        kept = [place for place in range(len(_HEADINGS)) if any(line[place] not in ("-", "") for line in lines[1:])]
        widths = [max(len(line[place]) for line in lines) for place in kept]
        room = max(width - sum(widths) - 2 * len(kept), _MIN_NAME_WIDTH)
        names = ["child processes", *(printable(child.title) for child in shown)]
        room = min(room, max(map(display_width, names)))
        for name, line in zip(names, lines, strict=True):
            cells = [line[place].rjust(size) for place, size in zip(kept, widths, strict=True)]
            text = name.encode("ascii", "backslashreplace").decode() if ascii_only else name
            text = truncate_middle(text, room, mark="..." if ascii_only else "…")
            yield "  ".join([text + " " * (room - display_width(text)), *cells])
        if len(self.children) > len(shown):
            yield f"and {len(self.children) - len(shown):,} more"
        yield ""
        yield from _LEGEND
        if any(child.end == _KILLED for child in shown):
            yield _LEGEND_KILLED


NO_CHILDREN: Final = FamilyReport((), ())


def collect(family: Family) -> FamilyReport:
    """Return what the processes of the family have left until now."""
    saved = {fields["name"]: fields for fields in family.saved()}
    sessions: dict[str, dict[str, Any]] = {}  # Any: JSON
    latest: dict[int, str] = {}  # the session of each process id
    programs: dict[int, str] = {}  # those that were started, and have not begun to measure so far
    for entry in family.entries():
        pid = entry["pid"]
        if entry["event"] == "session":
            programs.pop(pid, None)
            _drop_replaced(sessions, latest.get(pid), saved)
            sessions[entry["name"]] = entry
            latest[pid] = entry["name"]
        else:
            programs[pid] = entry["title"]
    others = tuple(title for pid, title in programs.items() if pid not in latest)
    children = [_child_report(entry, saved.get(name, {})) for name, entry in sessions.items()]
    return FamilyReport(tuple(children), others)


def _drop_replaced(sessions: dict[str, dict[str, Any]], name: str | None, saved: dict[str, dict[str, Any]]) -> None:
    """Drop the session of a forked process that another program has replaced (`exec`) before it left a report."""
    if name is not None and name not in saved:
        sessions.pop(name, None)


def _child_report(entry: dict[str, Any], fields: dict[str, Any]) -> ChildReport:  # Any: JSON
    end = _ENDED if fields.get("ended") else _RUNNING if process_start(entry["pid"]) else _KILLED
    if end == _RUNNING and not fields:
        fields = {"private_bytes": memory_share(entry["pid"]).private_bytes}
    return ChildReport(entry["pid"], str(fields.get("title", entry["title"])), end, fields)


def _peak(child: ChildReport) -> int:
    return child.process("peak_bytes") or 0
