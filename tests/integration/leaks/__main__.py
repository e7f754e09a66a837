"""Run the programs that leak: `python tests/integration/leaks [--seconds 20] [--meter native|resident] [--fixed]`.

Each program of `programs/` runs under `python -m memtools run --leaks`, several at once: they mostly sleep. The table
says whether the verdict is right, and which line of the answer names the holder. Healthy programs and, with `--fixed`,
the fixed forms of the others must get no line at all.

The exit status is 1 if a verdict is wrong, if a healthy program is accused, or if fewer owners are named than `--named`
asks for.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent / "programs"
_FIRST_LINES = 2  # where the owner has to be named


@dataclass(frozen=True, slots=True)
class Program:
    """One program, and what is to be said of it.

    Attributes:
        name: its file's name.
        verdict: a pattern for the kinds that are right for its leaking form.
        owner: a pattern for who holds it, empty where there is none.
        form: `leaking` or `fixed`.
    """

    name: str
    verdict: str
    owner: str
    form: str

    @property
    def leaks(self) -> bool:
        """Whether this form leaks."""
        return self.form == "leaking" and self.verdict != "none"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was said of a program.

    Attributes:
        program: which one.
        verdict: the kind; `failed` where the program did.
        lines: the answer.
    """

    program: Program
    verdict: str
    lines: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Whether the verdict is right."""
        return bool(re.fullmatch(self.program.verdict if self.program.leaks else "none", self.verdict))

    @property
    def named_in(self) -> int:
        """The line of the answer that names who holds it, from 1; 0 where none does."""
        if not self.program.leaks or not self.program.owner:
            return 0
        found = (place for place, line in enumerate(self.lines, 1) if re.search(self.program.owner, line))
        return next(found, 0)

    def row(self) -> str:
        """Return a row of the table."""
        said = self.lines[0] if self.lines else ""
        owner = str(self.named_in or "-") if self.program.leaks else ""
        right = "yes" if self.is_right else "NO"
        name = self.program.name + ("" if self.program.form == "leaking" else " (fixed)")
        return f"| {name} | {self.verdict} | {right} | {owner} | `{_cut(said)}` |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return the exit status."""
    options = _parser().parse_args(arguments)
    programs = find_programs(options.only, fixed=options.fixed)
    with ThreadPoolExecutor(options.at_once) as pool:
        outcomes = list(pool.map(lambda one: watch(one, options.seconds, options.meter), programs))
    print(table(outcomes), flush=True)

    leaking = [one for one in outcomes if one.program.leaks]
    healthy = [one for one in outcomes if not one.program.leaks]
    right, accused = sum(one.is_right for one in leaking), sum(not one.is_right for one in healthy)
    named = sum(0 < one.named_in <= _FIRST_LINES for one in leaking)
    print(f"\n{options.seconds:g} s a program, meter {options.meter or 'as chosen by memtools'}: ", end="")
    print(f"{right} of {len(leaking)} verdicts right, {accused} of {len(healthy)} healthy accused, ", end="")
    print(f"owner named in the first two lines: {named} of {len(leaking)}")
    return int(right < len(leaking) - options.misses or accused > 0 or named < options.named)


def find_programs(only: Sequence[str] = (), *, fixed: bool = False) -> list[Program]:
    """Return the programs, those whose names were given or all of them."""
    names = [path.stem for path in sorted(PROGRAMS.glob("[!_]*.py")) if not only or path.stem in only]
    facts = [(name, _constants(PROGRAMS / f"{name}.py")) for name in names]
    programs = [Program(name, known["VERDICT"], known["OWNER"], "leaking") for name, known in facts]
    if fixed:
        programs += [Program(one.name, one.verdict, one.owner, "fixed") for one in programs if one.leaks]
    return programs


def watch(program: Program, seconds: float, meter: str | None) -> Outcome:
    """Run one program and return what was said of it."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.json"
        command = [sys.executable, "-m", "memtools", "run", "--leaks", "--json", str(page)]
        command += ["--meter", meter] if meter else []
        command += [str(PROGRAMS / f"{program.name}.py"), str(seconds), program.form]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 3 + 60, check=False)
        lines = tuple(re.findall(r"^(?:LEAK |no leak seen |cannot tell: ).*", done.stderr, re.MULTILINE))
        if done.returncode or not page.exists():
            return Outcome(program, "failed", tuple(done.stderr.splitlines()[-3:]))
        answer = json.loads(page.read_text("utf-8")).get("leaks")
    # What is printed counts: a verdict without a line accuses no program.
    return Outcome(program, answer["verdict"] if answer else "failed", lines)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    head = "| program | verdict | right | owner in line | first line |\n|---|---|---|---|---|"
    return "\n".join([head, *(one.row() for one in outcomes)])


def _constants(path: Path) -> dict[str, str]:
    # Read, not imported: some of them begin to leak when they are imported.
    found = {}
    for statement in ast.parse(path.read_text("utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            found[ast.unparse(statement.targets[0])] = statement.value.value
    return found


def _cut(text: str) -> str:
    text = text.replace("|", "¦").replace("`", "'")
    return text if len(text) <= 200 else text[:199] + "…"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/integration/leaks", description="Run the programs that leak.")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each program runs (default: 20)")
    parser.add_argument("--meter", help="native, traced or resident (default: what memtools run takes)")
    parser.add_argument("--at-once", type=int, default=6, help="how many run at a time (default: 6)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--fixed", action="store_true", help="the fixed forms, too")
    parser.add_argument("--named", type=int, default=0, help="how many owners have to be named (default: 0)")
    parser.add_argument("--misses", type=int, default=0, help="how many verdicts on leaks may be wrong (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
