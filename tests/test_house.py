"""The house rules that no linter knows: what importing does, what the rooms look like, what is shipped."""

import ast
import configparser
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import textwrap
import tomllib
import types
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

import memtools

ROOT = Path(__file__).parent.parent
PACKAGE = Path(memtools.__file__).parent
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
FORBIDDEN = (
    "matplotlib",
    "numpy",
    "prometheus_client",
    "pytest",
    "rich",
    "smtplib",
    "sqlite3",
    "urllib.request",
)

# A thread may end by itself, and a handler may be replaced: what is compared is what stands after the import alone.
LOOK_AFTER_IMPORT = """
import json, logging, os, sys, threading, tracemalloc
import psutil, wrapt, typing_extensions  # whatever these do is theirs

def seen():
    descriptors = sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                         if os.path.exists(f"/proc/self/fd/{n}")) if sys.platform == "linux" else []
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "descriptors": descriptors,
        "environment": dict(os.environ),
        "tracing": tracemalloc.is_tracing(),
        "root handlers": len(logging.getLogger().handlers),
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.unraisablehook), str(sys.getprofile())],
    }

before = seen()
import memtools
print(json.dumps({"before": before, "after": seen(), "modules": sorted(sys.modules)}))
"""


def _python(program: str) -> str:
    command = [sys.executable, "-I", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def fresh_import() -> dict[str, object]:
    """What a fresh interpreter looks like before and after `import memtools`."""
    return json.loads(_python(LOOK_AFTER_IMPORT))


def test_importing_loads_no_heavy_and_no_optional_module(fresh_import: dict[str, list[str]]) -> None:
    loaded = {name for name in fresh_import["modules"] if name.startswith(FORBIDDEN)}

    assert not loaded & set(FORBIDDEN)


def test_importing_starts_opens_and_changes_nothing(fresh_import: dict[str, object]) -> None:
    assert fresh_import["after"] == fresh_import["before"]


def test_importing_costs_no_interpreter_wide_tool() -> None:
    used = _python(
        "import sys, memtools\n"
        "monitoring = getattr(sys, 'monitoring', None)\n"
        "print([monitoring.get_tool(number) for number in range(6)] if monitoring else [None])"
    )

    assert set(ast.literal_eval(used)) == {None}


def _with_those_for_type_checkers(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            yield from (*statement.body, *statement.orelse)
        else:
            yield statement


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(PACKAGE.parent).as_posix())
def test_a_room_opens_with_imports_and_a_sorted_list_of_names_only(room: Path) -> None:
    module = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    docstring, *statements = module.body

    assert ast.get_docstring(module)
    assert isinstance(docstring, ast.Expr)
    for statement in _with_those_for_type_checkers(statements):
        is_all = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
        assert is_all or isinstance(statement, ast.ImportFrom), ast.unparse(statement)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(PACKAGE.parent).as_posix())
def test_the_names_of_a_room_resolve_and_are_sorted(room: Path) -> None:
    module = importlib.import_module(".".join(room.relative_to(PACKAGE.parent).parts))
    names = list(getattr(module, "__all__", []))

    assert names == sorted(names, key=_isort_key)
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(module, name)] == []


def _isort_key(name: str) -> tuple[int, str]:
    # The order that ruff's RUF022 keeps: constants, then classes, then the rest.
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, name


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE.parent).as_posix()
)
def test_every_file_says_what_it_answers_and_is_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")

    assert ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) < 350


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE.parent).as_posix()
)
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )

    long = [node.name for node in functions if _lines_of_code(node) > 60]

    assert long == []


def _lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    # What is said about its arguments does not make a function long.
    docstring = ast.get_docstring(function, clean=False) or ""
    return (function.end_lineno or 0) - function.lineno - docstring.count("\n")


def test_every_public_name_says_what_it_is_for() -> None:
    silent = [
        f"{module.__name__}.{name}"
        for module in _public_modules()
        for name in getattr(module, "__all__", [])
        if _needs_docstring(getattr(module, name)) and not inspect.getdoc(getattr(module, name))
    ]

    assert silent == []


def test_every_public_method_says_what_it_is_for() -> None:
    silent = [
        f"{kind.__qualname__}.{name}"
        for module in _public_modules()
        for kind in map(module.__dict__.get, getattr(module, "__all__", []))
        if isinstance(kind, type) and kind.__module__.startswith("memtools")
        for name, member in vars(kind).items()
        if not name.startswith("_") and _needs_docstring(member) and not inspect.getdoc(getattr(kind, name))
    ]

    assert silent == []


def _needs_docstring(thing: object) -> bool:
    return inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property)


def _public_modules() -> list[types.ModuleType]:
    names = (found.name for found in pkgutil.walk_packages([str(PACKAGE)], "memtools."))
    public = [name for name in names if "._" not in name and not name.endswith("__main__")]
    return [memtools, *map(importlib.import_module, public)]


def test_setup_cfg_holds_no_metadata() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")

    # setuptools drops the extras of pyproject.toml without a word when both files hold some.
    assert settings.sections()
    assert all(section.startswith("importlinter") for section in settings.sections())


def test_every_extra_that_the_readme_installs_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert "pip install '.[test]' && pytest" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "test" in project["optional-dependencies"]


def test_the_type_marker_is_shipped() -> None:
    try:
        shipped = files("memtools") or []
    except PackageNotFoundError:
        shipped = []
    listed = [path for path in shipped if path.name == "py.typed"]
    if not listed:
        pytest.skip("memtools is not installed from a wheel here, so there is no list of what was shipped")

    assert Path(listed[0].locate()).is_file()


def test_the_front_door_is_not_crowded() -> None:
    names = getattr(memtools, "__all__", [])

    assert len(names) <= 30
    assert all(inspect.getmodule(getattr(memtools, name)) is not memtools for name in names)


def test_the_whole_front_door_opens_one_name_at_a_time_and_loads_only_what_it_takes() -> None:
    program = """
        import sys
        import memtools

        def rooms():
            return {name.split(".")[1] for name in sys.modules if name.startswith("memtools.")}

        late = {"monitor", "testing", "exporters", "lifecycle"}
        assert not late & rooms(), late & rooms()
        assert set(memtools.__all__) <= set(dir(memtools))
        for name in memtools.__all__:
            getattr(memtools, name)
        assert late <= rooms()
        assert memtools.testing.find_leaks is memtools.find_leaks
        try:
            memtools.find_leeks
        except AttributeError as error:
            assert error.name == "find_leeks" and error.obj is memtools
        else:
            raise AssertionError("there is no such name")
        from memtools import *
        assert find_leaks is memtools.find_leaks
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
