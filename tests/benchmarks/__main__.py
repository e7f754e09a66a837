"""Run the benchmarks: `python tests/benchmarks [--only NAME] [--rounds N] [--write docs/performance.md]`.

A page holds the results of `bench_NAME.py` between `<!-- results:NAME -->` and `<!-- /results:NAME -->`. The exit
status is 0 whether or not the targets are met: a busy machine is no failure, and the table says which were missed.
"""

import argparse
import importlib.util
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from _compare import Result, in_words

_HERE = Path(__file__).resolve().parent
_HEAD = "| what | held against | ratio | target | met |\n|---|---|---|---|---|"


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; return the exit status."""
    options = _parser().parse_args(arguments)
    paths = {path.stem.removeprefix("bench_"): path for path in sorted(_HERE.glob("bench_*.py"))}
    unknown = set(options.only) - set(paths)
    if unknown:
        print(f"no benchmark {sorted(unknown)}; there are {sorted(paths)}", file=sys.stderr)
        return 2

    tables = {}
    for name in options.only or paths:
        tables[name] = table(_run(paths[name], options.rounds))
        print(f"\n{name}\n{tables[name]}", flush=True)
    if options.write is None:
        return 0

    missing = write(options.write, tables)
    for name in missing:
        print(f"{options.write} has no place for {name}: add <!-- results:{name} -->", file=sys.stderr)
    return 0


def table(results: Iterable[Result]) -> str:
    """Return the results as a Markdown table that names the Python and the machine it was measured on."""
    rows = [
        f"| {result.title} ({result.unit_note}) | {result.peer} | {in_words(result.ratio)} "
        f"| {in_words(result.target)} | {'yes' if result.is_met else 'no'} |"
        for result in results
    ]
    measured = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}"
    return "\n".join([_HEAD, *rows, "", f"Measured with {measured} {platform.machine()}."])


def write(page: Path, tables: dict[str, str]) -> list[str]:
    """Replace the tables of a page between their markers; return the names for which it has no markers."""
    text = page.read_text("utf-8")
    missing = []
    for name, rows in tables.items():
        begin, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            missing.append(name)
            continue
        text = f"{before}{begin}\n{rows}\n{end}{after}"
    page.write_text(text, "utf-8")
    return missing


def _run(path: Path, rounds: int) -> list[Result]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    results: list[Result] = module.run(rounds=rounds)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description="Run the benchmarks of memtools.")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only bench_NAME.py; repeatable")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each comparison (default: 15)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
