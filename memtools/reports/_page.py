"""A report as one page: HTML with its style, its script and its charts inside, which fetches nothing.

Every name is escaped: it may come from a request. The page forbids itself whatever is not in it, by a policy in its
head. Optional end tags are left out, which HTML allows, because a page of 500 owners has 4,000 of them.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from memtools._charts import html_escape
from memtools._records import record
from memtools._text import printable
from memtools.readings import ResidentSplit
from memtools.reports._page_assets import SCRIPT, STYLE
from memtools.reports._rows import ReportFields, Row
from memtools.reports._text import (
    advice_lines,
    format_mib,
    leftover_line,
    legend,
    process_lines,
    row_figures,
    share_of,
)
from memtools.reports._timeline_chart import (
    CHART_STYLE,
    EventFields,
    ForecastFields,
    SampleFields,
    TimelineFields,
    duration_text,
    forecast_text,
    has_floor,
    timeline_svg,
    utc_text,
)
from memtools.reports._treemap import TREEMAP_STYLE, treemap_svg
from memtools.units import format_size

if TYPE_CHECKING:
    from memtools.analysis import Trend
    from memtools.heap import HeapGrowth
    from memtools.heap._type_sizes import TypeSize
    from memtools.leaks import Diagnosis, Leak
    from memtools.monitor._report import Container

_HEADINGS: Final = ("calls", "open", "failed", "peak MiB", "retained MiB", "live MiB", "time")
_LIVE: Final = 5
_OPEN_AND_FAILED: Final = (1, 2)
_FIRST_TO_HIDE: Final = frozenset({0, 1, 2, 4, 6})  # columns that a narrow window does not show
_MAX_DEPTH: Final = 12
_MAX_EVENTS: Final = 200
_SECTIONS: Final = {"scope": "Scopes", "task": "Tasks", "function": "Functions"}


@record
class PageFields:
    """What a page shows; a section appears only with its data.

    Attributes:
        report: the rows of the owners, and the process.
        identity: what program it is, as (label, text).
        at_s: when the report was taken, in seconds since the epoch; 0 if unknown.
        duration_s: what time the figures cover, in seconds; None if unknown.
        headline: short figures, as (label, text).
        sentences: what has to be said first, as (tone, text); a tone is `"bad"`, `"good"` or empty.
        timeline: resident memory over time.
        trend: what the timeline says.
        forecast: when the limit will be reached.
        thresholds: sizes by name, drawn into the timeline.
        diagnosis: what leaks, and what holds it.
        growing: what grew between two counts of the heap.
        containers: those that hold most.
        types: what the objects of each class take.
        split: what resident memory consists of.
        advice: what to change, a line each.
        more: HTML that comes behind it.
    """

    report: ReportFields
    identity: tuple[tuple[str, str], ...] = ()
    at_s: float = 0.0
    duration_s: float | None = None
    headline: tuple[tuple[str, str], ...] = ()
    sentences: tuple[tuple[str, str], ...] = ()
    timeline: TimelineFields | None = None
    trend: "Trend | None" = None
    forecast: ForecastFields | None = None
    thresholds: Mapping[str, int] | None = None
    diagnosis: "Diagnosis | None" = None
    growing: "Sequence[HeapGrowth]" = ()
    containers: "tuple[Container, ...]" = ()
    types: "tuple[TypeSize, ...]" = ()
    split: ResidentSplit | None = None
    advice: tuple[str, ...] = ()
    more: str = ""


@record
class _Snapshot:
    """A timeline at one moment: a `Timeline` makes a record for each sample, each time that it is asked for them."""

    samples: "Sequence[SampleFields]"
    events: "Sequence[EventFields]"
    limit_bytes: int | None


def page_html(fields: PageFields) -> str:
    """Return the page."""
    body = "".join(
        [
            *_head(fields),
            *_leaks(fields),
            *_advice(fields),
            *_timeline(fields),
            *_trend(fields.trend),
            *_owners(fields.report),
            *_containers(fields),
            *_types(fields),
            *_process(fields),
            fields.more
            and f"<details open><summary>Child processes</summary><div class=wide>{fields.more}</div></details>",
        ]
    )
    return whole_page(f"memtools: {fields.report.title}", body)


def whole_page(title: str, body: str) -> str:
    """Return an HTML page that fetches nothing and runs no script but its own; `body` is HTML, `title` is text."""
    digest = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="color-scheme" content="light dark"><meta name="viewport" content="width=device-width">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{text(title)}</title><style>{STYLE}{CHART_STYLE}{TREEMAP_STYLE}</style></head>"
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def text(words: str) -> str:
    """Return any text printable and escaped for HTML."""
    return html_escape(printable(words))


def _head(fields: PageFields) -> Iterator[str]:
    yield f"<h1>{text(fields.report.title)}</h1>"
    who = [("taken", utc_text(fields.at_s))] if fields.at_s else []
    if fields.duration_s is not None:
        who.append(("covers", duration_text(fields.duration_s)))
    who += [(label, words) for label, words in fields.identity]
    if fields.report.meters:
        who.append(("counted by", ", ".join(fields.report.meters)))
    if who:
        yield "<dl class=who>"
        yield from (f"<dt>{text(label)}<dd>{text(words)}" for label, words in who)
        yield "</dl>"
    yield "<dl class=tiles>"
    yield from (f"<div><dt>{text(label)}<dd>{text(words)}</div>" for label, words in _figures(fields))
    yield "</dl>"
    sentences = [*fields.sentences, *(("bad", caveat) for caveat in fields.report.caveats)]
    ahead = "" if fields.forecast is None else forecast_text(fields.forecast)
    if ahead:
        sentences.insert(0, ("bad", ahead))
    yield from (f'<p class="say {tone}">{text(words)}' for tone, words in sentences)


def _figures(fields: PageFields) -> Iterator[tuple[str, str]]:
    process = fields.report.process
    yield "resident now", format_size(process.resident_bytes)
    yield "resident peak", format_size(process.peak_bytes)
    if process.resident_growth_bytes is not None:
        yield "resident growth", format_size(process.resident_growth_bytes)
    if process.owned_bytes is not None:
        yield "held by owners", format_size(process.owned_bytes)
    yield "highest peak", format_size(fields.report.peak_bytes)
    yield from fields.headline


def _leaks(fields: PageFields) -> Iterator[str]:
    diagnosis, leftovers = fields.diagnosis, fields.report.leftovers
    if diagnosis is None and not leftovers:
        return
    yield "<details open><summary>Leaks</summary>"
    if diagnosis is not None:
        if diagnosis.leaks:
            yield from map(_leak, diagnosis.leaks)
            yield f"<p class=note>{text(diagnosis.note)}" if diagnosis.note else ""
        else:
            tone = "good" if not diagnosis.verdict.is_leak and diagnosis.verdict.seconds else ""
            yield f'<p class="say {tone}">{text(diagnosis.lines()[0])}'
    if leftovers:
        yield "<p class=note>What every call leaves behind, by the accounts:<ul>"
        yield from (f"<li>{text(leftover_line(leftover))}" for leftover in leftovers)
        yield "</ul>"
    yield "</details>"


def _leak(leak: "Leak") -> str:
    rate = f", +{format_size(leak.bytes_per_s)}/s" if leak.bytes_per_s else ""
    holders = "".join(f"<li>{text(holder)}" for holder in leak.holders)
    held = f"<p class=hint>held by, the nearest first<ol class=path>{holders}</ol>" if holders else ""
    hint = f"<p>{text(leak.hint)}" if leak.hint else ""
    return f'<div class="say bad"><b>{text(leak.kind.value)}{rate}</b> {text(leak.what)}{held}{hint}</div>'


def _timeline(fields: PageFields) -> Iterator[str]:
    if fields.timeline is None:
        return
    timeline = _Snapshot(fields.timeline.samples, fields.timeline.events, fields.timeline.limit_bytes)
    chart = timeline_svg(
        timeline, forecast=fields.forecast, thresholds=fields.thresholds, width="100%", has_style=False
    )
    if not chart:
        return
    samples, events, limit = timeline.samples, timeline.events, timeline.limit_bytes
    lasted = duration_text(samples[-1].at_s - samples[0].at_s)
    yield f"<details open><summary>Resident memory <small>over {lasted}, times in UTC</small></summary>{chart}"
    yield (
        "<p class=key><span><b style=background:var(--mean)></b>mean, with lowest to highest</span>"
        f"{'<span><b style=background:var(--floor)></b>floor</span>' if has_floor(samples) else ''}"
    )
    if events:
        yield "<span><b style=background:var(--event)></b>events</span>"
    if fields.forecast is not None:
        yield "<span><b style=background:var(--ahead)></b>forecast</span>"
    yield f"</p><p class=note>limit {format_size(limit)}" if limit is not None else "</p>"
    if events:
        yield f"<details><summary>{len(events):,} events</summary><table><tbody>"
        for event in events[-_MAX_EVENTS:]:
            yield f"<tr><td class=t>{utc_text(event.at_s)}<td class=t>{text(event.kind)}<td class=t>{text(event.text)}"
        yield "</table></details>"
    yield "</details>"


def _trend(trend: "Trend | None") -> Iterator[str]:
    if trend is None:
        return
    lines = [owner.text for owner in trend.owners]
    lines += [f"{utc_text(anomaly.at_s)}: {anomaly.text}" for anomaly in trend.anomalies]
    lines += [f"suggested thresholds: {trend.thresholds.reason}"] if trend.thresholds is not None else []
    if lines:
        yield "<details open><summary>What the curve says</summary><ul>"
        yield from (f"<li>{text(line)}" for line in lines)
        yield "</ul></details>"


def _owners(report: ReportFields) -> Iterator[str]:
    all_rows = [row for _, rows in report.sections for _, row in rows]
    if not all_rows:
        return
    highest = max(max(row.peak_bytes, row.live_bytes or 0) for row in all_rows)
    for heading, rows in report.sections:
        if rows:
            name = _SECTIONS.get(heading, text(heading))
            yield f"<details open><summary>{name} <small>{len(rows):,}</small></summary>"
            yield from _table(heading, rows, highest)
            yield "</details>"
    yield (
        "<p class=key><span><b style=background:var(--peak)></b>peak of one call</span>"
        "<span><b style=background:var(--live)></b>alive now, of all calls</span>"
    )
    yield from (f"<p class=note>{text(line)}" for line in legend(all_rows, shows_retained=True))
    for note, count in report.notes.items():
        yield f"<p class=note>~ not exact: {text(note)} ({count} row{'s' if count > 1 else ''})"


def _table(heading: str, rows: Sequence[tuple[int, Row]], highest: int) -> Iterator[str]:
    figures = [row_figures(row) for _, row in rows]
    columns = [
        column
        for column in range(len(_HEADINGS))
        if not (column in _OPEN_AND_FAILED and all(line[column] == "0" for line in figures))
        and not (column == _LIVE and all(row.live_bytes is None for _, row in rows))
    ]
    hidden = [" class=x" if column in _FIRST_TO_HIDE else "" for column in columns]
    yield f"<div class=wide><table class=o><thead><tr><th scope=col>{text(heading)}"
    yield from (f"<th scope=col{kind}>{_HEADINGS[column]}" for column, kind in zip(columns, hidden, strict=True))
    yield "<th scope=col>peak and live<tbody>"
    for (depth, row), line in zip(rows, figures, strict=True):
        indented = f" style=--d:{min(depth, _MAX_DEPTH)}" if depth else ""
        cells = "".join(f"<td{kind}>{line[column]}" for column, kind in zip(columns, hidden, strict=True))
        yield f"<tr><th scope=row{indented}>{text(row.name)}{cells}<td>{_bar(row, highest)}"
    yield "</table></div>"


def _bar(row: Row, highest: int) -> str:
    peak, live = share_of(row.peak_bytes, highest), share_of(row.live_bytes or 0, highest)
    parts = [f"--{name}:{share * 100:.1f}%" for name, share in (("p", peak), ("l", live)) if share >= 0.001]
    return f"<i style={';'.join(parts)}></i>" if parts else ""


def _containers(fields: PageFields) -> Iterator[str]:
    if fields.growing:
        yield "<details open><summary>Growing on the heap</summary><ul>"
        yield from (f"<li>{text(str(one))}" for one in fields.growing)
        yield "</ul></details>"
    if fields.containers:
        yield "<details open><summary>Largest containers <small>with what holds them</small></summary>"
        yield "<div class=wide><table class=o><thead><tr><th scope=col>container<th scope=col>items<th scope=col>MiB"
        yield "<th scope=col class=t>where it is made<th scope=col>size<tbody>"
        highest = max(one.held_bytes for one in fields.containers)
        for one in fields.containers:
            share = f"<i style=--l:{share_of(one.held_bytes, highest) * 100:.1f}%></i>"
            kind = f"{one.kind}, {one.bound}" if one.bound else one.kind
            yield (
                f"<tr><th scope=row>{text(one.name)} <span class=hint>{text(kind)}</span><td>{one.items:,}"
                f"<td>{format_mib(one.held_bytes)}<td class=t>{text(one.place)}<td>{share}"
            )
        yield "</table></div></details>"


def _types(fields: PageFields) -> Iterator[str]:
    if not fields.types:
        return
    total = sum(one.size_bytes for one in fields.types)
    entries = [(one.name, one.size_bytes, f"{one.objects:,} objects") for one in fields.types]
    yield f"<details open><summary>Objects by type <small>about {format_size(total)}</small></summary>"
    yield treemap_svg("objects of Python by type", entries, width="100%", has_style=False)
    yield "<details><summary>as a table</summary><table><thead><tr><th scope=col class=t>type<th scope=col>objects"
    yield "<th scope=col>MiB<tbody>"
    for one in fields.types:
        yield f"<tr><td class=t>{text(one.name)}<td>{one.objects:,}<td>{format_mib(one.size_bytes)}"
    yield "</table></details></details>"


def _process(fields: PageFields) -> Iterator[str]:
    yield "<details open><summary>The process</summary>"
    if fields.split is not None:
        yield from _split(fields.split)
    yield "<div class=wide><table><thead><tr><th scope=col class=t>process<th scope=col>MiB<th scope=col><tbody>"
    for label, size, explanation in process_lines(fields.report.process):
        depth = (len(label) - len(label.lstrip())) // 2
        indented = f"<td class=t style=padding-left:{depth}em>{text(label.strip())}"
        yield f"<tr>{indented}<td>{size}<td class=t>{text(explanation)}"
    yield "</table></div>"
    yield from (f"<p class=note>{text(line)}" for line in advice_lines(fields.report.process))
    yield "</details>"


def _split(split: ResidentSplit) -> Iterator[str]:
    parts = [part for part in split.parts() if part.size_bytes > 0]
    yield treemap_svg(
        "what resident memory consists of",
        [(part.name, part.size_bytes, part.meaning) for part in parts],
        width="100%",
        has_style=False,
    )
    yield "<details><summary>what resident memory consists of, as a table</summary><table><tbody>"
    for part in parts:
        told = f"{part.meaning}; {part.advice}" if part.advice else part.meaning
        yield f"<tr><td class=t>{text(part.name)}<td>{format_mib(part.size_bytes)}<td class=t>{text(told)}"
    yield "</table></details>"


def _advice(fields: PageFields) -> Iterator[str]:
    if fields.advice:
        yield "<details open><summary>What to change</summary><ul>"
        yield from (f"<li>{text(line)}" for line in fields.advice)
        yield "</ul></details>"
