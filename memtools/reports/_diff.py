"""The difference of two reports: which owner keeps more than before, and by how much.

Reports are read as JSON, as `memtools run --json` and `Report.to_json` write it, so that they may come from different
machines and days.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeGuard, cast

from memtools._records import as_dict, record
from memtools.errors import ConfigError
from memtools.units import format_size, parse_size

SCHEMA: Final = 1
_KINDS: Final = {"functions": "function", "tasks": "task", "scopes": "scope"}
_PROCESS: Final = (
    ("resident now", "resident_bytes"),
    ("resident peak", "peak_bytes"),
    ("resident growth", "resident_growth_bytes"),
    ("held by owners", "owned_bytes"),
    ("untracked", "untracked_bytes"),
    ("unattributed", "unattributed_bytes"),
)
_HELD: Final = "held by owners"
_MIN_TOLD_BYTES: Final = 64 << 10  # less is not worth a sentence
_SAME_SHARE: Final = 0.8  # an owner that explains so much of the largest change is named instead of what called it
_MAX_DEPTH: Final = 200
_LEAST_BASE_BYTES: Final = 1 << 20  # a percentage of less says nothing
_SIZES: Final = ("peak_bytes", "retained_bytes", "live_bytes")


@record
class OwnerFigures:
    """What one report says of an owner.

    Attributes:
        calls: how many there were.
        peak_bytes: the highest peak of one of them.
        retained_bytes: what was alive at the end of each, added up.
        live_bytes: what is alive now; None where the meter did not know.
        exact: whether the figures contain only bytes of this owner.
        meters: the names of the meters that counted.
    """

    calls: int
    peak_bytes: int
    retained_bytes: int
    live_bytes: int | None
    exact: bool
    meters: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {**as_dict(self), "meters": list(self.meters)}


@record
class OwnerChange:
    """One owner in two reports.

    Attributes:
        kind: `"scope"`, `"task"` or `"function"`.
        name: its name; that of a scope with the scopes above it, joined by `>`. As it was given: escape it.
        before: the earlier figures; None where the earlier report does not have it.
        after: the later ones; None where the later report does not have it.
    """

    kind: str
    name: str
    before: OwnerFigures | None
    after: OwnerFigures | None

    @property
    def is_comparable(self) -> bool:
        """Whether both were counted by the same meters, so that a difference means anything."""
        return self.before is None or self.after is None or self.before.meters == self.after.meters

    @property
    def exact(self) -> bool:
        """Whether both figures contain only bytes of this owner."""
        return all(figures.exact for figures in (self.before, self.after) if figures is not None)

    @property
    def kept(self) -> str:
        """What is compared: `"live"` where both know it, else `"retained"`."""
        known = [figures.live_bytes for figures in (self.before, self.after) if figures is not None]
        return "retained" if None in known else "live"

    def kept_bytes(self, figures: OwnerFigures | None) -> int:
        """Return what one of the two keeps, by that measure; 0 where there is no such owner."""
        if figures is None:
            return 0
        return figures.retained_bytes if self.kept == "retained" else figures.live_bytes or 0

    @property
    def kept_change_bytes(self) -> int:
        """How much more is kept after than before; 0 where that is not comparable."""
        return self.kept_bytes(self.after) - self.kept_bytes(self.before) if self.is_comparable else 0

    @property
    def peak_change_bytes(self) -> int:
        """How much higher the peak is after than before; 0 where that is not comparable."""
        peaks = [0 if figures is None else figures.peak_bytes for figures in (self.before, self.after)]
        return peaks[1] - peaks[0] if self.is_comparable else 0

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {
            "kind": self.kind,
            "name": self.name,
            "comparable": self.is_comparable,
            "exact": self.exact,
            "kept": self.kept,
            "kept_change_bytes": self.kept_change_bytes,
            "peak_change_bytes": self.peak_change_bytes,
            "before": None if self.before is None else self.before.to_dict(),
            "after": None if self.after is None else self.after.to_dict(),
        }


@record
class ProcessChange:
    """One figure of the process as a whole, in bytes; None where a report does not have it."""

    label: str
    before: int | None
    after: int | None

    @property
    def change_bytes(self) -> int | None:
        """How much more it is after than before."""
        return None if self.before is None or self.after is None else self.after - self.before


@record
class ReportDiff:
    """What changed from one report to another.

    Attributes:
        before: the title of the earlier report.
        after: the title of the later one.
        owners: the owners, the largest change first.
        process: the figures of the process, and of child processes together, where there are some.
        cautions: sentences on what is not comparable, or not exact.
        heads: what the reports say of themselves, as (label, before, after).
    """

    before: str
    after: str
    owners: tuple[OwnerChange, ...]
    process: tuple[ProcessChange, ...]
    cautions: tuple[str, ...]
    heads: tuple[tuple[str, str, str], ...] = ()

    @property
    def largest(self) -> OwnerChange | None:
        """The owner that explains the largest change best: the innermost of those that have nearly all of it."""
        changes = [one for one in self.owners if abs(one.kept_change_bytes) >= _MIN_TOLD_BYTES]
        if not changes:
            return None
        top = max(changes, key=lambda one: abs(one.kept_change_bytes))
        least = abs(top.kept_change_bytes) * _SAME_SHARE
        sign = 1 if top.kept_change_bytes > 0 else -1
        close = [one for one in changes if sign * one.kept_change_bytes >= least]
        # A function is a better answer than a task, and a task than a scope; inner ones keep less than outer ones.
        order = list(_KINDS.values())
        return min(close, key=lambda one: (order.index(one.kind), sign * one.kept_change_bytes, one.name))

    @property
    def sentence(self) -> str:
        """The largest change as a sentence."""
        largest = self.largest
        if largest is None:
            if any(not one.is_comparable for one in self.owners):
                return "nothing can be said: the reports were counted by different meters"
            return f"no owner keeps {format_size(_MIN_TOLD_BYTES)} more or less than before"
        change = largest.kept_change_bytes
        more = "more" if change > 0 else "less"
        before, after = largest.kept_bytes(largest.before), largest.kept_bytes(largest.after)
        about = "" if largest.exact else "about "
        return (
            f"the later one keeps {about}{format_size(abs(change))} {more} in `{largest.name}`: "
            f"{format_size(before)} before, {format_size(after)} now ({largest.kept})"
        )

    def above(self, least: str) -> tuple[str, ...]:
        """Return a sentence for each owner that keeps, or peaks by, more than `least` more than before.

        Args:
            least: a size as text, or a percentage of what it was before (of 1 MiB at least), such as `"10%"`.

        Raises:
            ConfigError: for a text that is neither.
        """
        limit = _parse_limit(least)
        found: list[str] = []
        for one in self.owners:
            kept, peak = one.kept_bytes(one.before), 0 if one.before is None else one.before.peak_bytes
            for what, base, change in ((one.kept, kept, one.kept_change_bytes), ("peak", peak, one.peak_change_bytes)):
                if change > limit(base):
                    found.append(f"{one.kind} {one.name}: {what} {format_size(change)} more than {format_size(base)}")
        for figure in self.process:
            grown = figure.change_bytes
            if figure.label == _HELD and grown is not None and grown > limit(figure.before or 0):
                found.append(f"{figure.label}: {format_size(grown)} more than {format_size(figure.before or 0)}")
        return tuple(found)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return {
            "before": self.before,
            "after": self.after,
            "sentence": self.sentence,
            "cautions": list(self.cautions),
            "process": [{**as_dict(one), "change_bytes": one.change_bytes} for one in self.process],
            "owners": [one.to_dict() for one in self.owners],
        }


def diff_reports(before: Mapping[str, Any], after: Mapping[str, Any]) -> ReportDiff:
    """Return what changed from one report to another.

    ```python
    from memtools.reports import diff_reports, report

    first = report().to_dict()
    second = report().to_dict()
    print(diff_reports(first, second).sentence)
    ```

    Args:
        before: the earlier report, as `Report.to_dict()` returns it, or `memtools run --json` has written it; the
            reports of child processes are taken in, those of one title together.
        after: the later one.

    Raises:
        ConfigError: for a dict that is no report, or one of another schema.
    """
    rows_before, rows_after = _rows(before, "before"), _rows(after, "after")
    owners = [
        OwnerChange(*key, rows_before.get(key), rows_after.get(key))
        for key in dict.fromkeys([*rows_before, *rows_after])
    ]
    owners.sort(key=lambda one: (-abs(one.kept_change_bytes), -abs(one.peak_change_bytes), one.kind, one.name))
    return ReportDiff(
        before=str(before["title"]),
        after=str(after["title"]),
        owners=tuple(owners),
        process=tuple(_process(before, after)),
        cautions=tuple(_cautions(owners, before, after)),
        heads=tuple(_heads(before, after)),
    )


def _rows(report: Mapping[str, Any], name: str) -> dict[tuple[str, str], OwnerFigures]:
    _check(report, name)
    found: dict[tuple[str, str], OwnerFigures] = {}
    _collect(report, "", name, found)
    for child in _list(report.get("children", []), name):
        fields = _mapping(child, name)
        if fields.get("report") is not None:
            inner = _mapping(fields["report"], name)
            _check(inner, name)
            _collect(inner, f"{fields.get('title', 'child')} > ", name, found)
    return found


def _check(report: Mapping[str, Any], name: str) -> None:
    schema = report.get("schema")
    if schema is True or schema != SCHEMA:
        accepted = f"a report of memtools of schema {SCHEMA}, as `memtools run --json` writes it"
        raise ConfigError(name, "no schema" if schema is None else f"schema {schema}", accepted)
    if not isinstance(report.get("title"), str) or not isinstance(report.get("process"), dict):
        raise ConfigError(name, "no title or process", "a whole report of memtools")


def _collect(report: Mapping[str, Any], above: str, name: str, found: dict[tuple[str, str], OwnerFigures]) -> None:
    for field, kind in _KINDS.items():
        pending = [(above, row, 0) for row in _list(report.get(field, []), name)]
        while pending:
            path, row, depth = pending.pop()
            fields = _mapping(row, name)
            figures = _figures(fields, name)
            own = f"{path}{fields['name']}"
            key = (kind, own)
            found[key] = _added(found[key], figures) if key in found else figures
            if depth < _MAX_DEPTH:
                pending += [(f"{own} > ", child, depth + 1) for child in _list(fields.get("children", []), name)]


def _figures(row: Mapping[str, Any], name: str) -> OwnerFigures:
    sizes = [row.get(size) for size in _SIZES]
    calls, meters = row.get("calls"), row.get("meters", [])
    is_whole = all(_is_number(size) for size in (*sizes[:2], calls)) and (sizes[2] is None or _is_number(sizes[2]))
    if not isinstance(row.get("name"), str) or not is_whole:
        raise ConfigError(
            name, f"the row {row.get('name')!r}", "rows with a name, calls, peak, retained and live bytes"
        )
    known = tuple(sorted(map(str, _list(meters, name))))
    return OwnerFigures(
        calls=_number(calls) or 0,
        peak_bytes=_number(sizes[0]) or 0,
        retained_bytes=_number(sizes[1]) or 0,
        live_bytes=_number(sizes[2]),
        exact=row.get("exact") is True,
        meters=known,
    )


def _added(one: OwnerFigures, other: OwnerFigures) -> OwnerFigures:
    # Owners of one name: child processes of one title, or scopes that were opened on several paths.
    live = None if one.live_bytes is None or other.live_bytes is None else one.live_bytes + other.live_bytes
    return OwnerFigures(
        one.calls + other.calls,
        max(one.peak_bytes, other.peak_bytes),
        one.retained_bytes + other.retained_bytes,
        live,
        one.exact and other.exact,
        tuple(sorted({*one.meters, *other.meters})),
    )


def _process(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[ProcessChange]:
    for label, field in _PROCESS:
        pair = [_number(report["process"].get(field)) for report in (before, after)]
        if pair != [None, None]:
            yield ProcessChange(label, *pair)
    children = [[_mapping(child, "children") for child in report.get("children", [])] for report in (before, after)]
    if any(children):
        peaks = [sum(_child_peak(child) for child in family) for family in children]
        yield ProcessChange("peaks of child processes", *peaks)


def _child_peak(child: Mapping[str, Any]) -> int:
    report = child.get("report")
    return _number(cast("dict[str, Any]", report)["process"].get("peak_bytes")) or 0 if report is not None else 0


def _cautions(owners: list[OwnerChange], before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    unlike = [one for one in owners if not one.is_comparable]
    if unlike:
        first = unlike[0]
        names = [" and ".join(figures.meters) for figures in (first.before, first.after) if figures is not None]
        many = "1 owner was" if len(unlike) == 1 else f"{len(unlike):,} owners were"
        yield f"{many} counted by different meters ({names[0]} before, {names[1]} now) and cannot be compared"
    inexact = sum(not one.exact for one in owners)
    if inexact:
        plural = "s" if inexact > 1 else ""
        yield f"~ the figures of {inexact:,} owner{plural} are not exact: see the notes of the reports"
    retained = sum(one.kept == "retained" for one in owners)
    if retained:
        yield (
            f"what is alive of {retained:,} owner{'s' if retained > 1 else ''} is not in both reports: what each call "
            "retained at its end is compared instead, which may have been freed since"
        )
    for report, word in ((before, "the earlier"), (after, "the later")):
        for caveat in _list(report.get("caveats", []), "caveats"):
            yield f"{word} report: {caveat}"


def _heads(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    identities = [_mapping(report.get("identity", {}), "identity") for report in (before, after)]
    for label in dict.fromkeys(label for identity in identities for label in identity):
        yield str(label), str(identities[0].get(label, "")), str(identities[1].get(label, ""))


def _parse_limit(least: str) -> Callable[[int], float]:
    """Return what gives the largest change that is allowed, for what there was before."""
    if least.endswith("%"):
        try:
            share = float(least[:-1])
        except ValueError:
            share = -1.0
        if not 0 <= share < float("inf"):
            raise ConfigError("fail_above", least, 'a size such as "10 MiB", or a percentage such as "10%"')
        return lambda base: share / 100 * max(base, _LEAST_BASE_BYTES)
    size = parse_size(least, name="fail_above")
    return lambda _: float(size)


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(name, value, "a list of rows")
    found: list[Any] = value  # pyright: ignore[reportUnknownVariableType]  # of anything
    return found


def _mapping(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(name, value, "rows that are objects")
    return cast("dict[str, Any]", value)


def _number(value: object) -> int | None:
    return int(value) if _is_number(value) else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**62
