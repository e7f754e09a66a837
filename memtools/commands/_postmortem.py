"""`memtools postmortem`: what a black box says of a process that was killed; all boxes of a folder."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from memtools._records import record
from memtools._text import printable
from memtools.black_box import PastReading, PostMortem, read_black_box
from memtools.black_box._folder import boxes_in
from memtools.reports._page import text as escaped
from memtools.reports._page import whole_page
from memtools.reports._text import can_show_blocks, format_mib, share_of
from memtools.reports._timeline_chart import duration_text, has_floor, timeline_svg, utc_text
from memtools.timelines import Sample, TimelineEvent
from memtools.units import format_size

_MAX_LISTED: Final = 20
_STANDARD: Final = "-"
_MAX_OWNERS: Final = 1_000  # on a page; the rest is one row
_MAX_PATH: Final = 300  # characters of an owner's names
_LEVELS: Final = ("normal", "warning", "critical")
_SHOWN_FACTS: Final = frozenset({"command", "name", "python"})  # in the heading, and in `versions`
_LOG: Final = "class=n style=white-space:pre-wrap;overflow-wrap:anywhere"


def print_postmortem(path: str, *, as_json: bool, html_path: str | None = None) -> int:
    """Print what the file, or each file of the folder, says; return the exit code.

    Args:
        path: a file, or a folder.
        as_json: whether to print JSON: an object for a file, a list for a folder.
        html_path: where to write a page as well; `-` is standard output, in place of the text.
    """
    try:
        is_folder = os.path.isdir(path)
        found = _read_folder(path) if is_folder else [read_black_box(path)]
    except (OSError, ValueError) as error:
        return _fail(str(error))
    if not found:
        if as_json:
            sys.stdout.write("[]\n")
            return 1
        return _fail(f"there is no black box in {path}")
    # The newest that was killed is what the reader has come for: all of it, and a line for each of the others.
    told = next((each for each in found if each.verdict not in ("alive", "ended")), found[0])
    others = [each for each in found if each is not told]
    if html_path is not None:
        try:
            _write_page(told, others, html_path)
        except OSError as error:
            return _fail(f"cannot write {html_path}: {error.strerror}")
    if as_json:
        sys.stdout.write(_as_json([each.to_dict() for each in found] if is_folder else told.to_dict()))
    elif html_path != _STANDARD:
        _print_text(told, others)
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"memtools postmortem: {printable(message)}\n")
    return 1


def _read_folder(folder: str) -> list[PostMortem]:
    found: list[PostMortem] = []
    for box in boxes_in(folder):
        try:
            found.append(read_black_box(box.path))
        except (OSError, ValueError) as error:  # one file may be anything, and the others are read
            _fail(str(error))
    return found


def _print_text(told: PostMortem, others: Sequence[PostMortem]) -> None:
    sys.stdout.write(told.text(ascii_only=not can_show_blocks(sys.stdout.encoding or "ascii")) + "\n")
    if others:
        sys.stdout.write("\nother boxes in this folder, the newest first:\n")
        for each in others[:_MAX_LISTED]:
            sys.stdout.write(f"  {printable(os.path.basename(each.path))}: {each.summary}\n")
        if len(others) > _MAX_LISTED:
            sys.stdout.write(f"  and {len(others) - _MAX_LISTED} more\n")


def _as_json(found: object) -> str:
    return json.dumps(found, indent=2) + "\n"


def _write_page(told: PostMortem, others: Sequence[PostMortem], path: str) -> None:
    page = postmortem_page(told, others)
    if path == _STANDARD:
        sys.stdout.write(page)
        return
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(page)


def postmortem_page(found: PostMortem, others: Sequence[PostMortem] = ()) -> str:
    """Return what a black box says as one HTML page, which fetches nothing.

    Args:
        found: what it says.
        others: those that are mentioned in a line each.
    """
    body = [
        *_head(found),
        *_list("What to change", found.advice()),
        *_readings(found.readings),
        *_owners(found),
        *_last_words(found.last_words),
        *_threads(found),
        *_list("Notes", found.notes),
        *_list("Other boxes in this folder", [f"{os.path.basename(one.path)}: {one.summary}" for one in others]),
    ]
    return whole_page(f"memtools: post-mortem of {found.name or 'a process'}, {found.pid}", "".join(body))


def _head(found: PostMortem) -> Iterator[str]:
    yield f"<h1>{escaped(found.command or found.name or '?')}</h1><dl class=who>"
    who = {"process": str(found.pid), "begun": utc_text(found.began_at), "black box": found.path} | dict(found.facts)
    shown = [(label, words) for label, words in who.items() if label not in _SHOWN_FACTS]
    yield from (f"<dt>{escaped(label)}<dd>{escaped(words)}" for label, words in shown)
    yield "</dl><dl class=tiles>"
    yield from (f"<div><dt>{escaped(label)}<dd>{escaped(words)}</div>" for label, words in _figures(found))
    tone = "good" if found.verdict in ("alive", "ended") else "bad"
    yield f'</dl><p class="say {tone}">the process {escaped(found.sentence)}'
    if found.is_mostly_native and found.native_bytes is not None:
        yield f'<p class="say bad">{format_size(found.native_bytes)} more in no owner\'s blocks: native memory'
    single = found.single_owner
    if single is not None and single.held_bytes > 0:
        peak = f", at least {format_size(single.peak_bytes)} at its peak" if single.peak_bytes > 0 else ""
        yield f"<p class=say>single owner #{single.number} of {escaped(single.name)}: {format_size(single.held_bytes)}"
        yield f"{peak}; last to allocate: {escaped(found.charged)}"


def _figures(found: PostMortem) -> Iterator[tuple[str, str]]:
    if found.readings:
        last = found.readings[-1]
        yield "resident at the end", format_size(max(last.resident_bytes, 0))
        if last.limit_bytes:
            yield "limit", format_size(last.limit_bytes)
            yield "of the limit", f"{last.resident_bytes / last.limit_bytes:.1%}"
        yield "level", _level(last)
    if found.counted_bytes is not None:
        yield "held by owners", format_size(found.counted_bytes)
    if found.native_bytes is not None:
        yield "grown beyond that", format_size(found.native_bytes)


def _level(reading: PastReading) -> str:
    return _LEVELS[reading.level] if 0 <= reading.level < len(_LEVELS) else "?"


@record
class _Timeline:
    samples: list[Sample]
    events: list[TimelineEvent]
    limit_bytes: int | None


def _timeline(readings: Sequence[PastReading]) -> _Timeline:
    known = sorted((reading for reading in readings if reading.at > 0), key=lambda reading: reading.at)
    sizes = [(one.at, max(one.resident_bytes, 0)) for one in known]
    samples = [Sample(at, 0.0, 1, size, size, size, None) for at, size in sizes]
    events: list[TimelineEvent] = []
    for before, after in pairwise(known):
        if before.level != after.level:
            events.append(TimelineEvent(after.at, _level(after), f"from {_level(before)} to {_level(after)}"))
    return _Timeline(samples, events, known[-1].limit_bytes if known else None)


def _readings(readings: Sequence[PastReading]) -> Iterator[str]:
    timeline = _timeline(readings)
    chart = timeline_svg(timeline, width="100%", has_style=False)
    if not chart:
        yield "<details open><summary>Last readings</summary><p class=note>no reading was written</details>"
        return
    lasted = duration_text(timeline.samples[-1].at_s - timeline.samples[0].at_s)
    number = f"{len(timeline.samples):,} of resident memory over {lasted}, times in UTC"
    yield f"<details open><summary>Last readings <small>{number}</small></summary>{chart}"
    yield "<p class=key><span><b style=background:var(--mean)></b>resident memory</span>"
    if has_floor(timeline.samples):
        yield "<span><b style=background:var(--floor)></b>floor</span>"
    if timeline.events:
        yield "<span><b style=background:var(--event)></b>the level changed</span>"
    yield "</p></details>"


def _owners(found: PostMortem) -> Iterator[str]:
    if found.counted_bytes is None:
        return
    holdings = [one for one in found.holdings if one.held_bytes > 0]
    highest = max((one.held_bytes for one in holdings), default=0)
    total = format_size(found.counted_bytes)
    yield f"<details open><summary>Who held what <small>{total} in {len(holdings):,} names</small></summary>"
    yield "<div class=wide><table class=o><thead><tr><th scope=col>owner<th scope=col>open<th scope=col>held MiB"
    yield "<th scope=col>share<tbody>"
    for one in holdings[:_MAX_OWNERS]:
        share = share_of(one.held_bytes, highest) * 100
        bar = f"<i style=--l:{share:.1f}%></i>" if share >= 0.1 else ""
        yield f"<tr><th scope=row>{escaped(one.name[:_MAX_PATH])}<td>{one.open_owners:,}<td>"
        yield f"{format_mib(one.held_bytes)}<td>{bar}"
    yield "</table></div>"
    rest = holdings[_MAX_OWNERS:]
    if rest:
        size = format_size(sum(one.held_bytes for one in rest))
        yield f"<p class=note>{len(rest):,} more names held {size} together"
    yield "</details>"


def _last_words(words: str) -> Iterator[str]:
    if words:
        yield "<details open><summary>Last words <small>of the process itself, when its memory ran short</small>"
        yield f"</summary><div {_LOG}>"
        yield "\n".join(map(escaped, words.splitlines()))
        yield "</div></details>"


def _threads(found: PostMortem) -> Iterator[str]:
    if found.threads:
        lines = [f"thread {ident} was in {name}" for ident, name in found.threads]
        yield from _list("Threads", lines)


def _list(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"<details open><summary>{title}</summary><ul>"
        yield from (f"<li>{escaped(line)}" for line in lines)
        yield "</ul></details>"
