"""Index the standard library: imports between its modules, import cycles, and the most frequent definitions.

An ordinary asyncio program that needs some memory, to show memtools with:

    python docs/examples/index_stdlib.py                            # the index
    python -m memtools run docs/examples/index_stdlib.py            # the index, and the memory that it took
    python -m memtools run docs/examples/index_stdlib.py --limit 200

One task per top-level package, eight at a time, each of which yields to the others within a module. The syntax trees
are large; each is dropped as soon as its module is done. Only the facts of a module are kept.
"""

import argparse
import ast
import asyncio
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memtools import (
    BoundedList,
    BudgetExceeded,
    WeakCache,
    bounded_history,
    memory_budget,
    memory_scope,
    profile_memory,
    task_scope,
)

SKIPPED_ALWAYS = {"__pycache__", "site-packages", "dist-packages", "lib-dynload"}
SKIPPED_BY_DEFAULT = {"test", "tests", "idle_test"}
NODES_AT_A_TIME = 2_000  # then the task yields to the others
SINGLE_MODULES = "single modules"  # the name of the tasks for modules outside packages


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Facts:
    """What is kept of a module when its tree is dropped."""

    name: str
    lines: int
    definitions: frozenset[str]
    imports: frozenset[str]  # modules, and names that may be modules: `from os import path` has "os" and "os.path"


class Index:
    """The modules indexed so far."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}
        self.lines: dict[str, int] = {}
        self.imports: dict[str, frozenset[str]] = {}
        self.defined: Counter[str] = Counter()
        # The latest only: a folder full of broken files must not become a list without end.
        self.problems: BoundedList[str] = BoundedList(maxlen=20)
        # A cache: facts that were dropped are read again.
        self.facts: WeakCache[str, Facts] = WeakCache(strong=1024)

    async def facts_of(self, module: str) -> Facts:
        """Return the facts of a module; it is read only once, even if two tasks want it at the same time."""
        return await self.facts.aget_or_create(module, lambda: read_facts(module, self.paths[module]))

    def add(self, facts: Facts) -> None:
        """Add a module to the index."""
        self.lines[facts.name] = facts.lines
        self.imports[facts.name] = facts.imports
        self.defined.update(facts.definitions)


@profile_memory
async def read_facts(module: str, path: Path) -> Facts:
    """Read and parse one module, and count what is in it."""
    with memory_scope("parse"):
        tree, lines = parse(path)
        await asyncio.sleep(0)

    is_package = path.name == "__init__.py"
    definitions: set[str] = set()
    imports: set[str] = set()
    with memory_scope("count"):
        for seen, node in enumerate(ast.walk(tree), start=1):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    definitions.add(node.name)
                case ast.Import():
                    imports.update(alias.name for alias in node.names)
                case ast.ImportFrom():
                    imports.update(imported_by(node, module, is_package))
            if seen % NODES_AT_A_TIME == 0:
                await asyncio.sleep(0)
    return Facts(module, lines, frozenset(definitions), frozenset(imports))


@memory_budget("256 MiB")  # the largest module of the standard library needs a tenth of it
def parse(path: Path) -> tuple[ast.Module, int]:
    """Return tree and lines of a module; a module that is too large fails alone, and not the whole index."""
    source = path.read_bytes()
    return ast.parse(source, filename=str(path)), source.count(b"\n")


def imported_by(node: ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """Yield what `from … import …` may import, relative names made absolute."""
    origin = node.module or ""
    if node.level:
        above = node.level - 1 if is_package else node.level
        parts = module.split(".")
        package = parts[: len(parts) - above]
        origin = ".".join([*package, *filter(None, [node.module])])
    yield origin
    for alias in node.names:
        yield f"{origin}.{alias.name}"


def find_modules(root: Path, *, everything: bool) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every module below `root`."""
    skipped = SKIPPED_ALWAYS if everything else SKIPPED_ALWAYS | SKIPPED_BY_DEFAULT
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name.isidentifier() and path.name not in skipped:
                waiting.append(path)
            elif path.suffix == ".py" and path.stem.isidentifier():
                parts = path.relative_to(root).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@bounded_history(100)
async def index_package(index: Index, modules: Iterable[str]) -> None:
    """Add the modules of one package to the index, one after the other."""
    for module in modules:
        try:
            index.add(await index.facts_of(module))
        except (SyntaxError, ValueError, BudgetExceeded) as error:  # some are broken on purpose
            index.problems.append(f"{module}: {type(error).__name__}: {error}")


async def index_everything(index: Index) -> None:
    """Run one task per package, and a few for the modules outside packages."""
    packages: dict[str, list[str]] = {}
    for module, path in index.paths.items():
        in_package = "." in module or path.name == "__init__.py"
        packages.setdefault(module.partition(".")[0] if in_package else SINGLE_MODULES, []).append(module)

    singles = packages.pop(SINGLE_MODULES, [])
    async with task_scope(max_running=8, name="index") as tasks:
        for start in range(0, len(singles), 25):
            await tasks.spawn(index_package(index, singles[start : start + 25]), name=SINGLE_MODULES)
        for package, modules in packages.items():
            await tasks.spawn(index_package(index, modules), name=package)


@profile_memory
async def cross_reference(index: Index) -> dict[str, set[str]]:
    """Return which indexed module imports which."""
    graph: dict[str, set[str]] = {}
    for module in reversed(index.imports):  # the latest first: their facts are still cached
        facts = await index.facts_of(module)
        graph[module] = {name for name in facts.imports if name in index.imports and name != module}
        await asyncio.sleep(0)
    return graph


@profile_memory
def find_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that all import each other, directly or not (Tarjan, 1972, without recursion)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    cycles: list[list[str]] = []

    for start in graph:
        work = [(start, iter(graph[start]))] if start not in order else []
        while work:
            module, targets = work[-1]
            if module not in order:
                order[module] = lowest[module] = len(order)
                stack.append(module)
                on_stack.add(module)
            for target in targets:
                if target not in order:
                    work.append((target, iter(graph[target])))
                    break
                if target in on_stack:
                    lowest[module] = min(lowest[module], order[target])
            else:
                work.pop()
                if work:
                    above = work[-1][0]
                    lowest[above] = min(lowest[above], lowest[module])
                if lowest[module] == order[module]:
                    cycles.append(popped_until(module, stack, on_stack))
    return sorted((cycle for cycle in cycles if len(cycle) > 1), key=len, reverse=True)


def popped_until(module: str, stack: list[str], on_stack: set[str]) -> list[str]:
    """Pop the stack down to `module`, and return what was popped."""
    group: list[str] = []
    while not group or group[-1] != module:
        group.append(stack.pop())
        on_stack.discard(group[-1])
    return sorted(group)


def show(index: Index, graph: dict[str, set[str]], cycles: list[list[str]], seconds: float) -> None:
    """Print the index."""
    imported: Counter[str] = Counter(target for targets in graph.values() for target in targets)
    edges = sum(imported.values())
    print(f"{len(graph)} modules, {sum(index.lines.values()):,} lines, {edges:,} imports, in {seconds:.1f} s")
    print_ranking("largest modules (lines)", Counter(index.lines))
    print_ranking("most imported (by modules)", imported)
    print_ranking("most defined names (in modules)", index.defined)
    print(f"\nimport cycles: {len(cycles)}")
    for cycle in cycles[:5]:
        rest = f" and {len(cycle) - 6} more" if len(cycle) > 6 else ""
        print(f"  {len(cycle):>4}  {', '.join(cycle[:6])}{rest}")

    calls, cache = index_package.history.summary(), index.facts.statistics()
    print(f"\nindexing a package: {calls}")
    print(f"facts requested: {cache.hits + cache.misses}, cached: {cache.hits}, kept: {cache.strong + cache.weak}")
    for problem in index.problems:
        print(f"skipped {problem}")


def print_ranking(heading: str, counts: Counter[str]) -> None:
    """Print the first eight."""
    print(f"\n{heading}")
    for name, count in counts.most_common(8):
        print(f"  {count:>7,}  {name}")


async def main() -> None:
    """Read the command line, index, print."""
    parser = argparse.ArgumentParser(description="Index the standard library.")
    parser.add_argument("--all", action="store_true", help="include the test packages")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N modules")
    options = parser.parse_args()

    started = time.perf_counter()
    index = Index()
    with memory_scope("find"):
        found = find_modules(Path(sysconfig.get_path("stdlib")), everything=options.all)
        index.paths = dict(sorted(found)[: options.limit])
    await index_everything(index)
    with memory_scope("cross-reference"):
        graph = await cross_reference(index)
        cycles = find_cycles(graph)
    show(index, graph, cycles, time.perf_counter() - started)


if __name__ == "__main__":
    asyncio.run(main())
