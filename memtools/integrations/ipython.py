"""The cell magic `%%memory` of IPython and Jupyter (extra `notebook`), after `%load_ext memtools`.

The statements of a cell run in the namespace of the user, as those of `%%time` do. An `await` at the top of a cell runs
on a loop of its own, in a thread of its own where the loop of the notebook is running, which cannot be entered twice.
"""

import ast
import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Coroutine
from importlib import import_module
from itertools import chain, count
from types import CodeType
from typing import Any, Final

from memtools.errors import ConfigError, MissingExtraError
from memtools.ledger import AccountStatistics, active_owner, bind_to_current, choose_meter, native_reason, statistics
from memtools.ledger._instrument import track_all_loops
from memtools.ledger._ledger import LedgerStatistics
from memtools.readings import ProcessMemory, read_process
from memtools.reports import Report, report
from memtools.scopes import memory_scope

_MAGIC: Final = "memory"
_METER: Final = "MEMTOOLS_METER"


def load_ipython_extension(ipython: Any) -> None:  # Any: IPython is optional
    """Register `%%memory`; IPython calls it at `%load_ext memtools`.

    The magic shows what a cell used: the peak, what it retained, and what is alive per owner.

    ```py
    %load_ext memtools

    %%memory import
    rows = load("prices.csv")
    ```

    The word behind `%%memory` is the name of the cell in the report; `--meter NAME` chooses the meter. By default it is
    `MEMTOOLS_METER`, else native, else tracemalloc, with which the code runs several times slower.
    """
    ipython.register_magic_function(_Magic(ipython), "cell", _MAGIC)


def unload_ipython_extension(ipython: Any) -> None:  # Any: as above
    """Take `%%memory` out again; IPython calls it at `%unload_ext memtools`."""
    ipython.magics_manager.magics["cell"].pop(_MAGIC, None)


class _Magic:
    """`%%memory`: a callable that IPython calls with the rest of the line and the cell."""

    __name__ = _MAGIC

    def __init__(self, ipython: Any) -> None:
        self._ipython = ipython
        # IPython shows it at `%%memory?`.
        self.__doc__ = load_ipython_extension.__doc__

    def __call__(self, line: str, cell: str) -> None:
        name, meter = _parse_line(line, self._ipython.execution_count)
        codes = self._compile(cell)
        name = _unused(name)
        scope, since = memory_scope(name, meter=meter), read_process()
        tracking = track_all_loops(choose_meter(meter))
        try:
            with scope:
                for code in codes:
                    self._run(code)
        finally:
            tracking.close()
            # Shown where the cell has failed, too; its exception passes, and the shell shows it.
            _display(_report_of(scope.owner.path, name, since))

    def _compile(self, cell: str) -> list[CodeType]:
        """Return the code of the statements, and that of a last expression, whose value the shell displays."""
        shell = self._ipython
        source = shell.transform_cell(cell)
        tree = shell.transform_ast(shell.compile.ast_parse(source))
        last = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
        file = shell.compile.cache(source, shell.execution_count, raw_code=cell)
        flags = shell.compile.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        parts = [(tree, "exec"), (ast.Interactive(last), "single")]
        return [compile(part, file, mode, flags=flags, dont_inherit=True) for part, mode in parts if part.body]

    def _run(self, code: CodeType) -> None:
        namespace = self._ipython.user_ns
        if code.co_flags & inspect.CO_COROUTINE:
            _run_to_end(eval(code, namespace))
        else:
            exec(code, namespace)


def _parse_line(line: str, number: int) -> tuple[str, str]:
    words = line.split()
    meter = os.environ.get(_METER) or ("tracemalloc" if native_reason() else "native")
    if "--meter" in words:
        place = words.index("--meter")
        if place + 1 == len(words):
            raise ConfigError("--meter", "", "a name: native, tracemalloc or rss")
        meter = words[place + 1]
        del words[place : place + 2]
    return " ".join(words) or f"cell {number}", meter


def _unused(name: str) -> str:
    """Return `name`, or one with a number where there was a cell of that name: its account has other figures."""
    above = active_owner()
    path = () if above is None else above.path
    known = statistics().accounts
    numbered = (f"{name} ({number})" for number in count(2))
    return next(each for each in chain((name,), numbered) if _find(known, (*path, each)) is None)


def _run_to_end(coroutine: Coroutine[Any, Any, Any]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    context, errors = contextvars.copy_context(), list[BaseException]()

    def run() -> None:
        try:
            asyncio.run(coroutine)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=context.run, args=(bind_to_current(run),), name="memtools-cell")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _report_of(path: tuple[str, ...], name: str, since: ProcessMemory) -> Report:
    known = statistics()
    found = _find(known.accounts, path)
    accounts = () if found is None else (found,)
    return report(
        title=name,
        since=since,
        ledger=LedgerStatistics(accounts, known.open_owners, {}, known.refused_blocks, known.ignored_stops),
    )


def _find(accounts: tuple[AccountStatistics, ...], path: tuple[str, ...]) -> AccountStatistics | None:
    name, *rest = path
    found = next((account for account in accounts if account.name == name), None)
    return found if found is None or not rest else _find(found.children, tuple(rest))


def _display(taken: Report) -> None:
    try:
        # By its name: some tools would take `import IPython` for this file.
        display: Any = import_module("IPython.display")
    except ImportError:
        raise MissingExtraError("IPython", "notebook") from None
    display.display(taken)
