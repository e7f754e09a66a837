"""The examples in docstrings run, in both ways of writing them: fenced blocks, and `>>>` with what it prints."""

import ast
import doctest
import importlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import memtools
from memtools.errors import MissingExtraError

PACKAGE = Path(memtools.__file__).parent
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def _docstrings() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}:{getattr(node, 'name', '')}", ast.get_docstring(node) or ""


FENCED = [(where, block) for where, text in _docstrings() for block in FENCE.findall(text)]
PROMPTED = [(where, text) for where, text in _docstrings() if ">>>" in text]


@pytest.mark.parametrize(("where", "block"), FENCED, ids=[where for where, _ in FENCED])
def test_a_fenced_example_runs(where: str, block: str) -> None:
    try:
        namespace = dict(vars(importlib.import_module(where.partition(":")[0])), __name__="__main__")
    except MissingExtraError as error:  # the adapter to a library that is not for every Python
        pytest.skip(str(error))
    namespace.setdefault("work", lambda: None)  # whatever the reader has to do

    exec(compile(textwrap.dedent(block), where, "exec"), namespace)


@pytest.mark.parametrize(("where", "text"), PROMPTED, ids=[where for where, _ in PROMPTED])
def test_a_prompted_example_prints_what_it_says(where: str, text: str) -> None:
    namespace = dict(vars(importlib.import_module(where.partition(":")[0])))
    example = doctest.DocTestParser().get_doctest(text, namespace, where, where, 0)
    said: list[str] = []

    doctest.DocTestRunner(verbose=False).run(example, out=said.append)

    assert not said, "".join(said)


def test_there_are_examples_to_run() -> None:
    assert FENCED
    assert PROMPTED
