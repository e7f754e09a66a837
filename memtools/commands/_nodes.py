"""`memtools nodes`: the processes of a pool, once, or refreshing on a terminal."""

import json
import os
import shutil
import sys
import time
from typing import Final

from memtools._text import printable, truncate_middle
from memtools.cluster import CarrierError, Node
from memtools.cluster._carrier import PoolFigures
from memtools.cluster._cluster import look
from memtools.commands._screen import PlainScreen, aligned
from memtools.errors import ConfigError, MissingExtraError
from memtools.units import format_size

_REFRESH_S: Final = 2.0
_HEADINGS: Final = ("node", "host", "pid", "used", "limit", "headroom", "leased", "level", "told")
_TEXT_COLUMNS: Final = frozenset({0, 1})
_MIN_WIDTH: Final = 80
_MAX_NAME: Final = 30


def print_nodes(url: str | None, *, pool: str | None, as_json: bool) -> int:
    """Print the processes of a pool; on a terminal again every two seconds, until Ctrl-C. Return the exit code.

    Args:
        url: the address of the carrier; None for that of the environment.
        pool: the name of the pool; None for that of the address.
        as_json: whether to print it once, as JSON.
    """
    url = url or os.environ.get("MEMTOOLS_CLUSTER")
    if not url:
        sys.stderr.write("memtools nodes: give the URL of a pool, or set MEMTOOLS_CLUSTER\n")
        return 2
    is_repeated = sys.stdout.isatty() and not as_json
    screen = PlainScreen(clears=is_repeated)
    try:
        while True:
            figures, nodes = look(url, pool=pool)
            text = _as_json(figures, nodes) if as_json else as_table(figures, nodes)
            screen.show([(text, "")])
            if not is_repeated:
                return 0
            time.sleep(_REFRESH_S)
    except (ConfigError, CarrierError, MissingExtraError) as error:
        sys.stderr.write(f"memtools nodes: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 0


def as_table(figures: PoolFigures, nodes: tuple[Node, ...], *, width: int | None = None) -> str:
    """Return the processes as lines, and the figures of the pool below."""
    columns = max(width or shutil.get_terminal_size().columns, _MIN_WIDTH)
    lines = aligned([_HEADINGS, *map(_row, nodes)], width=columns, left=_TEXT_COLUMNS)
    summary = (
        f"{len(nodes)} processes use {format_size(figures.used_bytes)} of {format_size(figures.usable_bytes)} "
        f"(a budget of {format_size(figures.budget_bytes)} less the reserve): {figures.leases} leases of "
        f"{format_size(figures.leased_bytes)}, {figures.waiting} waiting"
    )
    return "\n".join([*lines, "", summary])


def _row(node: Node) -> list[str]:
    told = f"{node.age_s:.0f} s ago"
    return [
        truncate_middle(printable(node.name), _MAX_NAME),
        truncate_middle(printable(node.host), _MAX_NAME),
        str(node.pid),
        format_size(node.used_bytes),
        "-" if node.limit_bytes is None else format_size(node.limit_bytes),
        "-" if node.headroom_bytes is None else format_size(node.headroom_bytes),
        format_size(node.leased_bytes),
        node.level.name.lower(),
        f"{told}, stale" if node.is_stale else told,
    ]


def _as_json(figures: PoolFigures, nodes: tuple[Node, ...]) -> str:
    pool = {name: getattr(figures, name) for name in figures.__match_args__}
    return json.dumps({"pool": pool, "nodes": [node.to_dict() for node in nodes]}, indent=2)
