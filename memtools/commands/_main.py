"""The command line of `python -m memtools`."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from memtools.commands._info import memtools_version, print_facts
from memtools.commands._program import Program, ProgramKind, command_name, hint
from memtools.commands._run import STANDARD_OUTPUT, RunOptions, default_meter, run
from memtools.errors import ConfigError
from memtools.ledger import Meter

_DESCRIPTION: Final = "Measure the memory of any Python program, or print what a bug report needs."
_RUN_HELP: Final = "run a program unchanged, and report its memory per scope, task and function on stderr"
_LEAKS_HELP: Final = "search for leaks while the program runs; report one line per leak, with what holds it"
_CHILDREN_HELP: Final = "leave the processes that the program starts alone, instead of a report and a line for each"
_METER_HELP: Final = "native (default where available), tracemalloc or rss"
_INFO_HELP: Final = "print what a bug report needs: versions, meters, the effective limit, the allocator"
_RUN_USAGE: Final = (
    "run [--leaks] [--no-children] [--json FILE] [--html FILE] [--meter NAME] [--black-box DIR] "
    "(-m MODULE | -c CODE | SCRIPT | -) [ARGUMENT ...]"
)
_RUN_EPILOG: Final = (
    "SCRIPT is a file, a folder or a zip file, as for python; - is standard input. Options of memtools stand before "
    "it; what follows it is passed to the program."
)

_DIFF_HELP: Final = "show what changed from one report to another: per owner what is kept and the peak, before and now"
_DIFF_EPILOG: Final = (
    "Exit codes: 0; 1 where --fail-above is exceeded; 2 where a file is no report, or nothing can be compared."
)
_POSTMORTEM_HELP: Final = "show what a process that was killed has left in its black box: who held what"
_BOX_HELP: Final = "write who holds what to a file in the folder DIR, for `postmortem` after a kill"
_ATTACH_HELP: Final = "ask a process that runs for its report, its leaks, its heap or its owners"
_ATTACH_EPILOG: Final = (
    "Exit codes: 0; 1 where the process has not answered; 2 where it cannot be asked: the message says what to do."
)
_NODES_HELP: Final = "show the processes of a pool that share a budget (memtools.cluster), refreshing on a terminal"

_TOP_HELP: Final = "show processes that have a black box, live: memory against the limit, and who holds what"
_TOP_EPILOG: Final = (
    "On a terminal it refreshes until q or Ctrl-C; l, r and n sort the owners by live bytes, rate and name. In colours "
    "with the extra: pip install memtools[top]"
)

_COMMANDS: Final = ("run", "attach", "diff", "info", "nodes", "postmortem", "top")
_KINDS: Final[dict[str, ProgramKind]] = {"-m": "module", "-c": "code"}
_MISSING: Final[dict[ProgramKind, str]] = {
    "module": "-m needs the name of a module",
    "code": "-c needs the code",
    "script": "a script, -m MODULE, -c CODE or - is required",
}
_OPTIONS_WITH_VALUE: Final = frozenset({"--json", "--html", "--meter", "--black-box"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code of every command but `run`, which ends as the program does.

    Args:
        arguments: the command line without the interpreter's own part; by default that of this process.
    """
    parser, run_parser = _make_parsers()
    own, words, kind = _split(list(sys.argv[1:] if arguments is None else arguments))
    _check_command(parser, own)
    options, unknown = parser.parse_known_args(own)
    if unknown:
        (run_parser if options.command == "run" else parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.command == "info":
        return _while_it_is_read(lambda: print_facts(as_json=options.json))
    if options.command == "nodes":
        from memtools.commands._nodes import print_nodes  # it loads sqlite3, which no program of `run` shall meet

        return _while_it_is_read(lambda: print_nodes(options.url, pool=options.pool, as_json=options.json))
    if options.command == "attach":
        return _while_it_is_read(lambda: _attach(parser, options))
    if options.command == "diff":
        return _while_it_is_read(lambda: _diff(options))
    if options.command == "postmortem":
        from memtools.commands._postmortem import print_postmortem  # as above: programs of `run` have no need of it

        return _while_it_is_read(lambda: print_postmortem(options.path, as_json=options.json, html_path=options.html))
    if options.command == "top":
        return _while_it_is_read(lambda: _top(options))
    if options.command == "run":
        return run(_parse_run(run_parser, options, words, kind))
    parser.print_help()
    return 2


def _diff(options: argparse.Namespace) -> int:
    from memtools.commands._diff import print_diff  # what only pages need

    return print_diff(
        options.before, options.after, as_json=options.json, html_path=options.html, fail_above=options.fail_above
    )


def _attach(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from memtools.black_box._mailbox import MAX_SECONDS
    from memtools.commands._attach import AttachOptions, attach  # as for `postmortem`

    for option, seconds in (("--seconds", options.seconds), ("--timeout", options.timeout)):
        if seconds is not None and not 0 <= seconds <= MAX_SECONDS:
            parser.error(f"{option}: {seconds} is not between 0 and {MAX_SECONDS:.0f} seconds")
    return attach(AttachOptions(options.pid, options.question, options.seconds, options.timeout, options.json))


def _top(options: argparse.Namespace) -> int:
    from memtools.commands._top import TopOptions, print_top  # as above

    return print_top(TopOptions(options.target, options.every, options.once, options.json, options.sort))


def _while_it_is_read(command: Callable[[], int]) -> int:
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:  # of `info | head`; what is left in the buffer must not be written at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _make_parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser of the command line, and that of `run`, whose errors show its own usage."""
    prog = command_name()
    parser = argparse.ArgumentParser(prog=prog, description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"memtools {memtools_version()}")
    commands = parser.add_subparsers(dest="command", metavar="{run,attach,diff,info,nodes,postmortem,top}")

    run_parser = commands.add_parser(
        "run",
        help=_RUN_HELP,
        description=_RUN_HELP,
        allow_abbrev=False,
        usage=f"{prog} {_RUN_USAGE}",
        epilog=_RUN_EPILOG,
    )
    run_parser.add_argument("--leaks", action="store_true", help=_LEAKS_HELP)
    run_parser.add_argument("--no-children", dest="children", action="store_false", help=_CHILDREN_HELP)
    run_parser.add_argument(
        "--json", metavar="FILE", help="also write the whole report to FILE as JSON; - is standard output"
    )
    run_parser.add_argument(
        "--html", metavar="FILE", help="also write the report to FILE as an HTML page; - is standard output"
    )
    run_parser.add_argument("--meter", metavar="NAME", help=_METER_HELP)
    run_parser.add_argument("--black-box", metavar="DIR", help=_BOX_HELP)

    _add_attach_parser(commands)
    _add_diff_parser(commands)
    info_parser = commands.add_parser("info", help=_INFO_HELP, description=_INFO_HELP, allow_abbrev=False)
    info_parser.add_argument("--json", action="store_true", help="print it as JSON")

    nodes_parser = commands.add_parser("nodes", help=_NODES_HELP, description=_NODES_HELP, allow_abbrev=False)
    nodes_parser.add_argument(
        "url", nargs="?", metavar="URL", help="as for memtools.cluster.join: sqlite:///PATH; else $MEMTOOLS_CLUSTER"
    )
    nodes_parser.add_argument("--pool", metavar="NAME", help="the name of the pool; else that of the URL, or default")
    nodes_parser.add_argument("--json", action="store_true", help="print it once, as JSON")
    _add_black_box_parsers(commands)
    return parser, run_parser


def _add_attach_parser(commands: Any) -> None:  # Any: the type of argparse is private
    parser = commands.add_parser(
        "attach", help=_ATTACH_HELP, description=_ATTACH_HELP, allow_abbrev=False, epilog=_ATTACH_EPILOG
    )
    parser.add_argument(
        "pid", metavar="PID", type=int, help="the process: one with a black box, or of Python 3.14 and later"
    )
    parser.add_argument(
        "question",
        nargs="?",
        default="report",
        choices=("report", "leaks", "heap", "owners"),
        help="report: what its monitor says; leaks: what leaks, and what holds it; heap: what grows, and the largest "
        "containers; owners: what each scope, task and call holds, and what its calls leave behind (default: report)",
    )
    parser.add_argument(
        "--seconds", metavar="N", type=float, help="for how long to observe it (default: 10; for leaks 20, at least 6)"
    )
    parser.add_argument(
        "--timeout", metavar="N", type=float, default=60.0, help="how much longer to wait at most (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _add_black_box_parsers(commands: Any) -> None:  # Any: the type of argparse is private
    post = commands.add_parser("postmortem", help=_POSTMORTEM_HELP, description=_POSTMORTEM_HELP, allow_abbrev=False)
    post.add_argument("path", metavar="PATH", help="the file, or the folder of several")
    post.add_argument("--json", action="store_true", help="print it as JSON")
    post.add_argument("--html", metavar="FILE", help="also write it to FILE as a page; - is stdout, without the text")
    top = commands.add_parser("top", help=_TOP_HELP, description=_TOP_HELP, allow_abbrev=False, epilog=_TOP_EPILOG)
    top.add_argument(
        "target",
        nargs="?",
        metavar="PID|DIR|FILE",
        help="a process, a folder of black boxes, or one of them; else the folder $MEMTOOLS_BLACK_BOX or /dev/shm",
    )
    top.add_argument("--every", metavar="S", help="seconds between two looks; also repeats where it is piped")
    top.add_argument("--once", action="store_true", help="print it once")
    top.add_argument("--json", action="store_true", help="print it once, as JSON")
    top.add_argument("--sort", choices=("live", "rate", "name"), default="live", help="the order of the owners")


def _add_diff_parser(commands: Any) -> None:  # Any: the type of argparse is private
    parser = commands.add_parser(
        "diff", help=_DIFF_HELP, description=_DIFF_HELP, allow_abbrev=False, epilog=_DIFF_EPILOG
    )
    parser.add_argument("before", metavar="A", help="the earlier report, as run --json has written it; - is stdin")
    parser.add_argument("after", metavar="B", help="the later report")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--html", metavar="FILE", help="also write it to FILE as a page; - is stdout, without the text")
    parser.add_argument(
        "--fail-above",
        metavar="SIZE|PERCENT",
        help="end with 1 where an owner keeps, or peaks by, that much more than before: 10MiB, or 10%%",
    )


def _split(words: list[str]) -> tuple[list[str], list[str], ProgramKind]:
    """Return the words for memtools, those for the program, and what the first of these is."""
    # By hand: argparse takes a `--` out of a REMAINDER, drops an empty word (3.13), and takes the `--json` in
    # `-mpkg --json` from the program.
    if words[:1] != ["run"]:
        return words, [], "script"
    place = 1
    while place < len(words) and words[place].startswith("-") and words[place] not in ("-", "--"):
        word = words[place]
        if word.startswith(("-m", "-c")):
            return words[:place], [*filter(None, [word[2:]]), *words[place + 1 :]], _KINDS[word[:2]]
        place += 2 if word in _OPTIONS_WITH_VALUE else 1
    program = words[place + 1 :] if words[place : place + 1] == ["--"] else words[place:]
    return words[:place], program, "stdin" if program[:1] == ["-"] else "script"


def _check_command(parser: argparse.ArgumentParser, words: list[str]) -> None:
    first = words[0] if words else ""
    if first and not first.startswith("-") and first not in _COMMANDS:
        advice = hint(first, words[1:]) or f"{parser.prog} run {shlex.join(words)}"
        parser.error(f"unknown command {first!r}; to run a program: {advice}")


def _parse_run(
    parser: argparse.ArgumentParser, options: argparse.Namespace, words: list[str], kind: ProgramKind
) -> RunOptions:
    if not words:
        parser.error(_MISSING[kind])
    if options.json == options.html == STANDARD_OUTPUT:
        parser.error("--json and --html cannot both be written to standard output")
    return RunOptions(
        program=Program(words[0], kind, tuple(words[1:])),
        meter=_parse_meter(parser, options.meter),
        json_path=_parse_output_path(parser, "--json", options.json),
        html_path=_parse_output_path(parser, "--html", options.html),
        leaks=options.leaks,
        children=options.children,
        black_box=_parse_black_box(parser, options.black_box),
    )


def _parse_meter(parser: argparse.ArgumentParser, name: str | None) -> Meter:
    try:
        return default_meter(name)
    except ConfigError as error:
        parser.error(str(error))


def _parse_black_box(parser: argparse.ArgumentParser, folder: str | None) -> str | None:
    if folder is None:
        return None
    from memtools.black_box._folder import parse_folder

    try:
        return parse_folder(folder, name="--black-box")
    except ConfigError as error:
        parser.error(str(error))


def _parse_output_path(parser: argparse.ArgumentParser, option: str, path: str | None) -> str | None:
    if path is None or path == STANDARD_OUTPUT:
        return path
    # Absolute, since the program may change its folder; checked now, and not after the program has run for an hour.
    try:
        absolute = os.path.abspath(path)
    except OSError as error:
        parser.error(f"{option}: cannot write {path}: the current folder cannot be read ({error.strerror})")
    if os.path.isdir(absolute):
        parser.error(f"{option}: {path} is a folder; give the path of a file")
    if not os.access(os.path.dirname(absolute), os.W_OK):
        parser.error(f"{option}: cannot write {path}: its folder does not exist or is not writable")
    return absolute
