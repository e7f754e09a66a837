"""The difference of two reports as text for a terminal, and as a page."""

import sys
from collections.abc import Iterator, Sequence
from typing import Final

from memtools._text import display_width, printable, truncate_middle
from memtools.reports._diff import OwnerChange, OwnerFigures, ReportDiff
from memtools.reports._page import text as escaped
from memtools.reports._page import whole_page
from memtools.reports._text import can_show_blocks, format_mib, share_of, terminal_width

_HEADINGS: Final = ("kept before", "now", "change", "peak before", "now", "change")
_WORDS: Final = (
    "calls before", "calls now", "kept before", "kept now", "kept change", "peak before", "peak now", "peak change",
)  # fmt: skip
_TITLES: Final = {"function": "functions", "task": "tasks", "scope": "scopes"}
_GAP: Final = "  "
_MIN_NAME: Final = 16
_MIN_SHOWN_BYTES: Final = 5_243  # half of what two decimals of a MiB show


def diff_text(diff: ReportDiff, *, width: int | None = None, ascii_only: bool | None = None, limit: int = 20) -> str:
    """Return the difference as a table for a terminal.

    Args:
        diff: the difference.
        width: columns; by default the terminal's, between 80 and 140.
        ascii_only: use ASCII only; by default where standard output can show nothing else.
        limit: rows per kind of owner; those left out are counted.
    """
    is_ascii = not can_show_blocks(getattr(sys.stdout, "encoding", None)) if ascii_only is None else ascii_only
    columns = terminal_width() if width is None else max(width, 80)
    lines = [f"memtools: {printable(diff.before)} -> {printable(diff.after)}", "", printable(diff.sentence)]
    for kind, heading in _TITLES.items():
        owners = [one for one in diff.owners if one.kind == kind]
        changed = [one for one in owners if _is_changed(one)]
        if changed:
            lines += ["", *_table(heading, changed[:limit], columns, "..." if is_ascii else "…")]
            if len(changed) > limit:
                lines.append(f"and {len(changed) - limit:,} more")
        if len(owners) > len(changed):
            lines.append(f"unchanged {heading}: {len(owners) - len(changed):,}")
    lines += ["", f"{'process':<26}{'before':>12}{'now':>12}{'change':>12}"]
    for figure in diff.process:
        sizes = [_mib(figure.before), _mib(figure.after), _signed(figure.change_bytes)]
        lines.append(f"{figure.label:<26}" + "".join(f"{size:>12}" for size in sizes))
    lines += ["", "sizes in MiB; kept: live now, where both reports know it, else retained at the end of each call"]
    text = "\n".join([*(line.rstrip() for line in lines), *(f"! {printable(one)}" for one in diff.cautions)])
    return text.encode("ascii", "backslashreplace").decode() if is_ascii else text


def diff_page(diff: ReportDiff) -> str:
    """Return the difference as one HTML page, which fetches nothing."""
    return whole_page(f"memtools: {diff.before} and {diff.after}", "".join(_page(diff)))


def _page(diff: ReportDiff) -> Iterator[str]:
    yield f"<h1>{escaped(diff.before)} → {escaped(diff.after)}</h1>"
    largest = diff.largest
    tone = "" if largest is None else "bad" if largest.kept_change_bytes > 0 else "good"
    yield f'<p class="say {tone}">{escaped(diff.sentence)}'
    yield from (f'<p class="say">{escaped(caution)}' for caution in diff.cautions)
    if diff.heads:
        yield "<details><summary>What was compared</summary><div class=wide><table><tbody>"
        for head in diff.heads:
            yield f"<tr>{''.join(f'<td class=t>{escaped(words)}' for words in head)}"
        yield "</table></div></details>"
    highest = max((abs(one.kept_change_bytes) for one in diff.owners), default=0)
    for kind, heading in _TITLES.items():
        owners = [one for one in diff.owners if one.kind == kind]
        if owners:
            yield f"<details open><summary>{heading.title()} <small>{len(owners):,}</small></summary>"
            yield f"<div class=wide><table class=o><thead><tr><th scope=col>{kind}"
            for place, heading_text in enumerate(_WORDS):
                hidden = " class=x" if place not in (4, 7) else ""
                yield f"<th scope=col{hidden}>{heading_text}"
            yield "<th scope=col>change of what is kept<tbody>"
            yield from (_html_row(one, highest) for one in owners)
            yield "</table></div></details>"
    yield "<details open><summary>The process</summary><table><thead><tr><th scope=col class=t>process, MiB"
    yield "<th scope=col>before<th scope=col>now<th scope=col>change<tbody>"
    for figure in diff.process:
        cells = f"<td>{_mib(figure.before)}<td>{_mib(figure.after)}<td>{_signed(figure.change_bytes)}"
        yield f"<tr><td class=t>{escaped(figure.label)}{cells}"
    yield "</table></details>"


def _html_row(one: OwnerChange, highest: int) -> str:
    calls = ["-" if figures is None else f"{figures.calls:,}" for figures in (one.before, one.after)]
    cells = "".join(
        f"<td{' class=x' if place not in (4, 7) else ''}>{cell}" for place, cell in enumerate((*calls, *_cells(one)))
    )
    share = share_of(abs(one.kept_change_bytes), highest) * 100
    name = "p" if one.kept_change_bytes < 0 else "l"  # a light bar for less, a dark one for more
    bar = f"<i style=--{name}:{share:.1f}%></i>" if share >= 0.1 else ""
    return f"<tr><th scope=row>{escaped(one.name)}{cells}<td>{bar}"


def _table(heading: str, owners: Sequence[OwnerChange], columns: int, mark: str) -> Iterator[str]:
    cells = [_cells(one) for one in owners]
    widths = [max(len(line[place]) for line in (_HEADINGS, *cells)) for place in range(len(_HEADINGS))]
    room = max(columns - sum(widths) - len(_GAP) * len(widths), _MIN_NAME)
    for name, line in zip((heading, *(one.name for one in owners)), (_HEADINGS, *cells), strict=True):
        shown = truncate_middle(printable(name), room, mark=mark)
        padded = shown + " " * (room - display_width(shown))
        yield _GAP.join([padded, *(cell.rjust(size) for cell, size in zip(line, widths, strict=True))])


def _cells(one: OwnerChange) -> tuple[str, ...]:
    def peak(figures: OwnerFigures | None) -> str:
        return "-" if figures is None else format_mib(figures.peak_bytes)

    def kept(figures: OwnerFigures | None) -> str:
        return "-" if figures is None else format_mib(one.kept_bytes(figures))

    if not one.is_comparable:
        return kept(one.before), kept(one.after), "other meter", peak(one.before), peak(one.after), "-"
    about = "" if one.exact else "~"
    return (
        kept(one.before),
        kept(one.after),
        about + _signed(one.kept_change_bytes),
        peak(one.before),
        peak(one.after),
        about + _signed(one.peak_change_bytes),
    )


def _is_changed(one: OwnerChange) -> bool:
    changes = (one.kept_change_bytes, one.peak_change_bytes)
    return not one.is_comparable or any(abs(change) >= _MIN_SHOWN_BYTES for change in changes)


def _mib(size: int | None) -> str:
    return "-" if size is None else format_mib(size)


def _signed(size: int | None) -> str:
    if size is None:
        return "-"
    text = format_mib(size)
    return f"+{text}" if size > 0 and text != "0.00" else text
