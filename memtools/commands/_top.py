"""`memtools top`: the processes of a folder of black boxes, and who holds what in them, live."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Final

from memtools._records import record
from memtools._text import display_width, printable, truncate_middle
from memtools.black_box._folder import boxes_in, default_folder
from memtools.commands._screen import Keyboard, Line, PlainScreen, Screen, aligned, ellipsis
from memtools.commands._top_figures import BoxWatcher, Order, OwnerFigures, ProcessFigures
from memtools.errors import ConfigError
from memtools.readings._shares import memory_share, process_start
from memtools.units import format_duration, format_size, parse_seconds

DEFAULT_S: Final = 2.0
_FASTEST_S: Final = 0.05
_MIN_WIDTH, _MAX_WIDTH = 80, 200
_ONCE_OWNERS: Final = 20  # that are printed once, or to a pipe
_MAX_PROCESS_NAME: Final = 24
_KEYS: Final[dict[str, Order]] = {"l": "live", "r": "rate", "n": "name"}
_KEYS_HELP: Final = "  (l live, r rate, n name, q quit)"
_HEADINGS: tuple[str, ...] = (
    "pid", "process", "resident", "limit", "used", "per min", "limit in", "counted", "read", "level",
)  # fmt: skip
_FIRST_TO_GO: Final = ("read", "counted", "per min", "limit")  # where the terminal is narrow
_LEVELS: Final = ("normal", "warning", "critical")
_LEVEL_STYLES: Final = {"warning": "doubt", "critical": "bad", "killed": "bad", "ended": "faint"}
_NONE: Final = "-"


@record
class TopOptions:
    """What the command line says.

    Attributes:
        target: the id of a process, a folder of black boxes, or one of them; None for the folder of the environment.
        every: seconds between two looks, as text; None for the default.
        once: whether to print once, though on a terminal.
        as_json: whether to print once, as JSON.
        order: by which figure the owners are sorted.
    """

    target: str | None
    every: str | None
    once: bool
    as_json: bool
    order: Order


class _RefusedError(Exception):
    """The command cannot do what it is asked for; the message says why, and what can be done."""


def print_top(options: TopOptions) -> int:
    """Print the processes; on a terminal again and again, until `q` or Ctrl-C. Return the exit code."""
    try:
        every_s = _parse_every(options.every)
        watcher = BoxWatcher(_finder(options.target))
    except (ConfigError, _RefusedError) as error:
        sys.stderr.write(f"memtools top: {printable(str(error))}\n")
        return 2
    try:
        watcher.update()
        if not watcher.processes():
            sys.stderr.write(f"memtools top: {printable(_why_none(options.target))}\n")
            return 1
        if options.once or options.as_json or not (sys.stdout.isatty() or options.every):
            _print_once(watcher, options)
        else:
            _watch(watcher, options.order, every_s)
    except KeyboardInterrupt:
        pass
    finally:
        watcher.close()
    return 0


def _parse_every(text: str | None) -> float:
    if text is None:
        return DEFAULT_S
    try:
        seconds: object = float(text)
    except ValueError:
        seconds = text
    return max(parse_seconds(seconds, name="--every", above_zero=True), _FASTEST_S)


def _finder(target: str | None) -> Callable[[], Iterable[str]]:
    """Return what finds the files of a target.

    Raises:
        _RefusedError: for what is none.
    """
    if target is None:
        return lambda: _boxes(_folders()[:1])
    if target.isdecimal():
        return lambda: _boxes(_folders(), int(target))
    if "://" in target:
        raise _RefusedError(f"{target} is a pool: `python -m memtools nodes {target}` shows its processes")
    if os.path.isdir(target):
        return lambda: _boxes([target])
    if os.path.exists(target):
        return lambda: [target]
    raise _RefusedError(f"{target} is neither the id of a process nor a folder of black boxes")


def _folders() -> list[str]:
    """Return where boxes are looked for: in the folder of the environment, and where they are by default."""
    named = os.environ.get("MEMTOOLS_BLACK_BOX", "")
    return list(dict.fromkeys([*([named] if os.path.isdir(named) else []), default_folder()]))


def _boxes(folders: Iterable[str], pid: int | None = None) -> list[str]:
    return [box.path for folder in folders for box in boxes_in(folder) if pid in (None, box.pid)]


def _why_none(target: str | None) -> str:
    start = (
        "start the program with MEMTOOLS_BLACK_BOX=/dev/shm and a MemoryMonitor, or by `memtools run --black-box DIR`"
    )
    if target is not None and target.isdecimal():
        places = " and ".join(_folders())
        if not process_start(int(target)):
            return f"there is no process {target} here, and no black box of one in {places}"
        share = memory_share(int(target))
        uses = ""
        if share.pss_bytes is not None:
            uses = f" It uses {format_size(share.pss_bytes)} now (its proportional share)."
        return f"process {target} has no black box in {places}.{uses} To see its owners, {start}"
    if target is not None and not os.path.isdir(target):
        return f"{target} is no black box of a process that runs: `python -m memtools postmortem {target}`"
    folder = target or _folders()[0]
    dead = ""
    if _boxes([folder]):
        dead = f", only boxes of processes that have ended: `python -m memtools postmortem {folder}`"
    return f"no process that runs has a black box in {folder}{dead}. To have one, {start}"


def _print_once(watcher: BoxWatcher, options: TopOptions) -> None:
    if options.every:  # rates need two looks
        time.sleep(_parse_every(options.every))
        watcher.update()
    if not options.as_json:
        owners = watcher.owners(options.order, _ONCE_OWNERS)
        PlainScreen(clears=False).show(top_lines(watcher.processes(), owners, options.order, width=_width()))
        return
    owners = watcher.owners(options.order, sys.maxsize)
    found = {
        "processes": [each.to_dict() for each in watcher.processes()],
        "owners": [each.to_dict() for each in owners],
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def _watch(watcher: BoxWatcher, order: Order, every_s: float) -> None:
    is_terminal = sys.stdout.isatty()
    with ExitStack() as stack:
        keyboard = stack.enter_context(Keyboard())
        screen = stack.enter_context(_rich_screen() if is_terminal else PlainScreen(clears=False))
        next_s = time.monotonic()
        while True:
            height = shutil.get_terminal_size().lines - 1 if is_terminal else _ONCE_OWNERS
            owners = watcher.owners(order, max(height, 1))
            processes = watcher.processes()
            screen.show(top_lines(processes, owners, order, width=_width(), height=height if is_terminal else None))
            next_s = max(next_s + every_s, time.monotonic())
            key = keyboard.wait(max(next_s - time.monotonic(), 0.0))
            if key in ("q", "Q"):
                return
            if key:
                order, next_s = _KEYS.get(key.lower(), order), time.monotonic() - every_s
                continue
            watcher.update()


def _rich_screen() -> Screen:
    try:
        from memtools.commands._rich import RichScreen
    except ImportError:  # without the extra: the same lines, without colours
        return PlainScreen(clears=True)
    return RichScreen()


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, _MIN_WIDTH), _MAX_WIDTH)


def top_lines(
    processes: Sequence[ProcessFigures],
    owners: Sequence[OwnerFigures],
    order: Order,
    *,
    width: int,
    height: int | None = None,
) -> list[Line]:
    """Return what is shown: the processes, and below them the owners.

    Args:
        processes: in their order.
        owners: in their order.
        order: what that is.
        width: columns of the terminal.
        height: lines of the terminal; None where all are shown.
    """
    running = [each for each in processes if each.state == "alive"]
    resident = sum(each.resident_bytes or 0 for each in running)
    clock = time.strftime("%H:%M:%S")
    number = f"{len(running)} process{'' if len(running) == 1 else 'es'}"
    title = f"memtools top  {clock}  {number}, resident {format_size(resident)}, owners by {order}"
    if height is not None and len(title) + len(_KEYS_HELP) <= width:
        title += _KEYS_HELP
    lines: list[Line] = [(title, "heading")]
    notes = _notes(processes)
    shown = processes
    if height is not None:
        # The title, two headings, an empty line and the notes; the owners have at least half of the rest.
        room = max(height - 4 - len(notes), 2)
        shown = processes[: max(room - len(owners), room // 2, 1)]
        owners = owners[: max(room - len(shown), 0)]
    lines += _process_lines(shown, width)
    if len(shown) < len(processes):
        lines[-1] = f"and {len(processes) - len(shown) + 1} more processes", "faint"
    if owners:
        lines += [("", ""), *_owner_lines(owners, width, has_pid=len(processes) > 1)]
    lines += [(truncate_middle(note, width, mark=ellipsis()), "doubt") for note in notes]
    return lines if height is None else lines[: max(height, 1)]


def _notes(processes: Sequence[ProcessFigures]) -> list[str]:
    by_note: dict[str, list[str]] = {}
    for each in processes:
        for note in each.notes:
            by_note.setdefault(note, []).append(str(each.pid))
    return [f"note: {', '.join(pids)}: {note}" for note, pids in list(by_note.items())[:3]]


def _process_lines(processes: Sequence[ProcessFigures], width: int) -> list[Line]:
    rows: list[dict[str, str]] = [dict(zip(_HEADINGS, _process_cells(each), strict=True)) for each in processes]
    columns: list[str] = [*_HEADINGS]
    for heading in _FIRST_TO_GO:
        sizes = [max(map(display_width, (column, *(row[column] for row in rows)))) for column in columns]
        if sum(sizes) + 2 * (len(sizes) - 1) > width:
            columns.remove(heading)
    cells = [columns, *([row[column] for column in columns] for row in rows)]
    texts = aligned(cells, width=width, left=frozenset({1, len(columns) - 1}))
    return [
        (texts[0], "heading"),
        *((text, _LEVEL_STYLES.get(row["level"], "")) for text, row in zip(texts[1:], rows, strict=True)),
    ]


def _process_cells(each: ProcessFigures) -> tuple[str, ...]:
    resident, limit = each.resident_bytes, each.limit_bytes
    level = _NONE if each.level is None else _LEVELS[each.level]
    return (
        str(each.pid),
        truncate_middle(printable(each.name, 200), _MAX_PROCESS_NAME, mark=ellipsis()),
        _size(resident),
        _size(limit),
        f"{resident / limit:.0%}" if resident is not None and limit else _NONE,
        _rate(each.rate_bytes_per_s),
        _NONE if each.seconds_to_limit is None else format_duration(each.seconds_to_limit),
        _size(each.counted_bytes),
        _NONE if each.age_s is None else f"{format_duration(each.age_s)} ago",
        level if each.state == "alive" else each.state,
    )


def _owner_lines(owners: Sequence[OwnerFigures], width: int, *, has_pid: bool) -> list[Line]:
    rows = [("live", "per min", "open", *(("pid",) if has_pid else ()), "owner")]
    for each in owners:
        pid = (str(each.pid),) if has_pid else ()
        holding = each.holding
        is_open = str(holding.open_owners)
        rows.append((format_size(holding.held_bytes), _rate(each.rate_bytes_per_s), is_open, *pid, holding.name))
    names = len(rows[0]) - 1
    taken = sum(max(display_width(row[column]) for row in rows) + 2 for column in range(names))
    cells = [[*row[:names], truncate_middle(row[names], max(width - taken, 16), mark=ellipsis())] for row in rows]
    texts = aligned(cells, width=width, left=frozenset({names}))
    return [(texts[0], "heading"), *((text, "") for text in texts[1:])]


def _size(size: int | None) -> str:
    return _NONE if size is None else format_size(size)


def _rate(bytes_per_s: float | None) -> str:
    if bytes_per_s is None:
        return _NONE
    per_minute = round(bytes_per_s * 60)
    return f"{'+' if per_minute > 0 else '-' if per_minute < 0 else ''}{format_size(abs(per_minute))}"
