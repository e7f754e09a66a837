"""The command line of `python -m memtools`."""

import argparse
import os
from collections.abc import Sequence
from typing import Final

from memtools.commands._info import memtools_version, print_facts
from memtools.commands._run import RunOptions, default_meter, run
from memtools.errors import ConfigError
from memtools.ledger import Meter

_DESCRIPTION: Final = "Measure the memory of any Python program, or print what a bug report needs."
_RUN_HELP: Final = "run a program unchanged, and report its memory per scope, task and function on stderr"
_LEAKS_HELP: Final = "search for leaks while the program runs; report one line per leak, with what holds it"
_METER_HELP: Final = "native (default where available), tracemalloc or rss"
_INFO_HELP: Final = "print what a bug report needs: versions, meters, the effective limit, the allocator"
_RUN_USAGE: Final = (
    "python -m memtools run [--leaks] [--json FILE] [--html FILE] [--meter NAME] (-m MODULE | SCRIPT) [ARGUMENT ...]"
)
_RUN_EPILOG: Final = (
    "SCRIPT is a file, a folder or a zip file, as for python. Options of memtools stand before it; what follows it is "
    "passed to the program."
)

_COMMANDS: Final = ("run", "info")
_OPTIONS_WITH_VALUE: Final = frozenset({"--json", "--html", "--meter"})


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code of every command but `run`, which ends as the program does.

    Args:
        arguments: the command line without the interpreter's own part.
    """
    parser, run_parser = _make_parsers()
    own, program, is_module = _split(list(arguments))
    _check_command(parser, own)
    options, unknown = parser.parse_known_args(own)
    if unknown:
        (run_parser if options.command == "run" else parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.command == "info":
        return print_facts(as_json=options.json)
    if options.command == "run":
        return run(_parse_run(run_parser, options, program, is_module=is_module))
    parser.print_help()
    return 2


def _make_parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser of the command line, and that of `run`, whose errors show its own usage."""
    parser = argparse.ArgumentParser(prog="python -m memtools", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"memtools {memtools_version()}")
    commands = parser.add_subparsers(dest="command", metavar="{run,info}")

    run_parser = commands.add_parser(
        "run", help=_RUN_HELP, description=_RUN_HELP, allow_abbrev=False, usage=_RUN_USAGE, epilog=_RUN_EPILOG
    )
    run_parser.add_argument("--leaks", action="store_true", help=_LEAKS_HELP)
    run_parser.add_argument("--json", metavar="FILE", help="also write the whole report to FILE as JSON")
    run_parser.add_argument("--html", metavar="FILE", help="also write the report to FILE as an HTML page")
    run_parser.add_argument("--meter", metavar="NAME", help=_METER_HELP)

    info_parser = commands.add_parser("info", help=_INFO_HELP, description=_INFO_HELP, allow_abbrev=False)
    info_parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser, run_parser


def _split(words: list[str]) -> tuple[list[str], list[str], bool]:
    """Return the words for memtools, those for the program, and whether the program is a module."""
    # By hand: argparse takes a `--` out of a REMAINDER, drops an empty word (3.13), and takes the `--json` in
    # `-mpkg --json` from the program.
    if words[:1] != ["run"]:
        return words, [], False
    place = 1
    while place < len(words) and words[place].startswith("-"):
        word = words[place]
        if word.startswith("-m"):
            return words[:place], [*filter(None, [word[2:]]), *words[place + 1 :]], True
        if word == "--":
            return words[:place], words[place + 1 :], False
        place += 2 if word in _OPTIONS_WITH_VALUE else 1
    return words[:place], words[place:], False


def _check_command(parser: argparse.ArgumentParser, words: list[str]) -> None:
    first = words[0] if words else ""
    if first and not first.startswith("-") and first not in _COMMANDS:
        parser.error(f"unknown command {first!r}; to run a program: python -m memtools run {first}")


def _parse_run(
    parser: argparse.ArgumentParser, options: argparse.Namespace, words: list[str], *, is_module: bool
) -> RunOptions:
    if not words:
        parser.error("-m needs the name of a module" if is_module else "a script or -m MODULE is required")
    return RunOptions(
        program=words[0],
        is_module=is_module,
        arguments=tuple(words[1:]),
        meter=_parse_meter(parser, options.meter),
        json_path=_parse_output_path(parser, "--json", options.json),
        html_path=_parse_output_path(parser, "--html", options.html),
        leaks=options.leaks,
    )


def _parse_meter(parser: argparse.ArgumentParser, name: str | None) -> Meter:
    try:
        return default_meter(name)
    except ConfigError as error:
        parser.error(str(error))


def _parse_output_path(parser: argparse.ArgumentParser, option: str, path: str | None) -> str | None:
    if path is None:
        return None
    # Absolute, since the program may change its folder; checked now, and not after the program has run for an hour.
    absolute = os.path.abspath(path)
    if os.path.isdir(absolute):
        parser.error(f"{option}: {path} is a folder; give the path of a file")
    if not os.access(os.path.dirname(absolute), os.W_OK):
        parser.error(f"{option}: cannot write {path}: its folder does not exist or is not writable")
    return absolute
