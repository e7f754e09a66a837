"""Read the command line, and hand over.

Covers: the words of the command line and what is refused. Leaves to others: running a program (`_run`), describing the
environment (`_describing`).
"""

import argparse
import os
from collections.abc import Sequence
from typing import Final

from memtools.commands._info import print_facts, memtools_version
from memtools.commands._run import RunOptions, default_meter, run
from memtools.errors import ConfigError
from memtools.ledger import Meter

_RUN_HELP: Final = "run any program unchanged and report on stderr who used how much memory"
_LEAKS_HELP: Final = "look for leaks meanwhile, and end with the answer: one line per leak, and who holds it"
_METER_HELP: Final = "who counts: native (the default where it can be had), tracemalloc or rss"
_INFO_HELP: Final = "say what a bug report needs: versions, meters, the effective limit, the allocator"

_WITH_A_VALUE: Final = frozenset({"--json", "--html", "--meter"})


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; return the exit code of everything but `run`, which ends as the program does.

    Args:
        arguments: the command line without the interpreter's own part.
    """
    parser = _make_parser()
    ours, theirs, is_module = _split(list(arguments))
    wishes = parser.parse_args(ours)
    if wishes.command == "info":
        return print_facts(as_json=wishes.json)
    if wishes.command == "run":
        return run(_parse_run(parser, wishes, theirs, is_module=is_module))
    parser.print_help()
    return 2


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m memtools", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"memtools {memtools_version()}")
    commands = parser.add_subparsers(dest="command", metavar="{run,info}")

    running = commands.add_parser(
        "run",
        help=_RUN_HELP,
        description=_RUN_HELP,
        allow_abbrev=False,
        usage="python -m memtools run [--leaks] [--json FILE] [--html FILE] [--meter NAME] "
        "(-m MODULE | SCRIPT) [ARGUMENT ...]",
    )
    running.add_argument("--leaks", action="store_true", help=_LEAKS_HELP)
    running.add_argument("--json", metavar="FILE", help="write the whole report there, too")
    running.add_argument("--html", metavar="FILE", help="write the report there as a page, too")
    running.add_argument("--meter", metavar="NAME", help=_METER_HELP)
    running.epilog = "SCRIPT is a file, a folder or a zip file, as for python. What follows it belongs to the program."

    describing = commands.add_parser("info", help=_INFO_HELP, description=_INFO_HELP, allow_abbrev=False)
    describing.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _split(words: list[str]) -> tuple[list[str], list[str], bool]:
    """Return our own words, the program's, and whether the program is a module."""
    # By hand: argparse takes a `--` out of a REMAINDER, drops an empty word (3.13), and reads `-mpkg --json` as ours.
    if words[:1] != ["run"]:
        return words, [], False
    place = 1
    while place < len(words) and words[place].startswith("-"):
        word = words[place]
        if word.startswith("-m"):
            return words[:place], [*filter(None, [word[2:]]), *words[place + 1 :]], True
        if word == "--":
            return words[:place], words[place + 1 :], False
        place += 2 if word in _WITH_A_VALUE else 1
    return words[:place], words[place:], False


def _parse_run(parser: argparse.ArgumentParser, wishes: argparse.Namespace, words: list[str], *, is_module: bool) -> RunOptions:
    if not words:
        parser.error("run: a script or -m MODULE is needed")
    return RunOptions(
        program=words[0],
        is_module=is_module,
        arguments=tuple(words[1:]),
        meter=_parse_meter(parser, wishes.meter),
        json_path=_parse_output_path(parser, wishes.json),
        html_path=_parse_output_path(parser, wishes.html),
        leaks=wishes.leaks,
    )


def _parse_meter(parser: argparse.ArgumentParser, name: str | None) -> Meter:
    try:
        return default_meter(name)
    except ConfigError as error:
        parser.error(f"run: {error}")


def _parse_output_path(parser: argparse.ArgumentParser, path: str | None) -> str | None:
    if path is None:
        return None
    # Absolute: the program may go elsewhere. Looked at now: an hour later would be a pity.
    absolute = os.path.abspath(path)
    if os.path.isdir(absolute) or not os.access(os.path.dirname(absolute), os.W_OK):
        parser.error(f"run: cannot write {path}")
    return absolute
