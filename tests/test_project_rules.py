"""Check the rules of the project that no linter knows: imports, packages, files, public names and what is shipped."""

import ast
import configparser
import importlib
import inspect
import io
import json
import pkgutil
import subprocess
import sys
import tokenize
import tomllib
import types
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

import memtools

ROOT = Path(__file__).parent.parent
PACKAGE = Path(memtools.__file__).parent
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
FILES = sorted(PACKAGE.rglob("*.py"))

# What these rules read is the source, which is the same for every Python.
once = pytest.mark.once

SMALL_FILE_LINES = 60

NOT_LOADED_BY_IMPORT = (
    "matplotlib",
    "numpy",
    "prometheus_client",
    "pytest",
    "rich",
    "smtplib",
    "sqlite3",
    "urllib.request",
)
PROGRAMS = ROOT / "tests" / "integration" / "programs"


def _run(program: Path) -> str:
    # Isolated, but with the memtools that is tested: it need not be installed.
    start = f"import runpy, sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); runpy.run_path({str(program)!r})"
    done = subprocess.run([sys.executable, "-I", "-c", start], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fresh_import() -> dict[str, object]:
    """What a fresh interpreter looks like before and after `import memtools`."""
    return json.loads(_run(PROGRAMS / "import_effects.py"))


def _name_of(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


class TestImport:
    """What `import memtools` does, and does not do."""

    def test_import_loads_no_heavy_and_no_optional_module(self, fresh_import: dict[str, list[str]]) -> None:
        loaded = {name for name in fresh_import["modules"] if name.startswith(NOT_LOADED_BY_IMPORT)}

        assert not loaded & set(NOT_LOADED_BY_IMPORT)

    def test_import_starts_opens_and_changes_nothing(self, fresh_import: dict[str, object]) -> None:
        assert fresh_import["after"] == fresh_import["before"]

    def test_import_takes_no_tool_of_sys_monitoring(self) -> None:
        used = _run(PROGRAMS / "monitoring_tools.py")

        assert set(ast.literal_eval(used)) == {None}

    def test_top_level_names_load_only_what_they_need(self) -> None:
        _run(PROGRAMS / "top_level_names.py")


@once
class TestPackages:
    """What an `__init__.py` holds, and how modules import each other."""

    @pytest.mark.parametrize("package", PACKAGES, ids=_name_of)
    def test_package_holds_only_imports_and_its_names(self, package: Path) -> None:
        module = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
        docstring, *statements = module.body

        assert ast.get_docstring(module)
        assert isinstance(docstring, ast.Expr)
        for statement in _with_those_for_type_checkers(statements):
            is_all = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
            is_bare_annotation = isinstance(statement, ast.AnnAssign) and statement.value is None  # for type checkers
            assert is_all or is_bare_annotation or isinstance(statement, ast.ImportFrom), ast.unparse(statement)

    @pytest.mark.parametrize("package", PACKAGES, ids=_name_of)
    def test_names_of_a_package_resolve_and_are_sorted(self, package: Path) -> None:
        module = importlib.import_module(".".join(package.relative_to(PACKAGE.parent).parts))
        names = list(getattr(module, "__all__", []))

        assert names == sorted(names, key=_isort_key)
        assert len(names) == len(set(names))
        assert [name for name in names if not hasattr(module, name)] == []

    def test_modules_import_each_other_in_no_cycle(self) -> None:
        cycles = _cycles({_module_of(path): _imports(path) for path in FILES})

        assert not cycles, "\n".join(" <-> ".join(cycle) for cycle in cycles)

    def test_cycle_through_three_modules_is_found(self) -> None:
        imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}

        assert _cycles(imports) == [["a", "b", "c"]]

    def test_imports_for_types_and_in_functions_count(self, tmp_path: Path) -> None:
        file = tmp_path / "module.py"
        file.write_text(
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from memtools.errors import ConfigError\n"
            "def late():\n    import memtools.config\n    from memtools import units\n"
        )

        assert _imports(file) == {"memtools.errors", "memtools.config", "memtools.units"}


def _with_those_for_type_checkers(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            yield from (*statement.body, *statement.orelse)
        else:
            yield statement


def _isort_key(name: str) -> tuple[int, str]:
    # The order that ruff's RUF022 keeps: constants, then classes, then the rest.
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, name


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """Return the modules of memtools that a file names in an import, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in within if _is_module(name)}
            found |= submodules if len(submodules) == len(within) else {*submodules, str(node.module)}
    return {name for name in found if name.partition(".")[0] == "memtools"}


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    # A stub without a .py beside it stands for a module in C, whether or not that was built.
    return any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyi")) or (path / "__init__.py").exists()


def _cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    reachable = {module: _reachable(module, imports) for module in imports}
    cycles = {
        tuple(sorted(other for other in reached if module in reachable.get(other, ())))
        for module, reached in reachable.items()
        if module in reached
    }
    return [list(cycle) for cycle in sorted(cycles)]


def _reachable(module: str, imports: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [*imports[module]]
    while waiting:
        found = waiting.pop()
        if found not in reached:
            reached.add(found)
            waiting += imports.get(found, ())
    return reached


@once
class TestFiles:
    """What each file says of itself, and how long its functions are."""

    @pytest.mark.parametrize("path", FILES, ids=_name_of)
    def test_file_has_a_docstring(self, path: Path) -> None:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))

    def test_small_file_says_why_it_is_a_file_of_its_own(self) -> None:
        unexplained = [
            f"{_name_of(path)} ({lines} lines of code)"
            for path in FILES
            if path.name not in ("__init__.py", "__main__.py")
            for source in [path.read_text(encoding="utf-8")]
            for lines in [_count_lines_of_code(source)]
            if lines < SMALL_FILE_LINES and not _explains_itself(source)
        ]

        assert not unexplained, "\n".join(unexplained)

    def test_docstrings_comments_and_blanks_are_no_lines_of_code(self) -> None:
        source = '"""One.\n\nTwo.\n"""\n\n# A comment.\ndef f():\n    """Three."""\n    return (\n        1\n    )\n'

        assert _count_lines_of_code(source) == 4

    # The frames of all threads in one variable are a cycle, for the frame that has the variable is among them.
    def test_frames_of_threads_are_asked_for_where_that_is_safe(self) -> None:
        asking = [_name_of(path) for path in FILES if "_current_frames(" in path.read_text(encoding="utf-8")]

        assert asking == ["memtools/_threads.py", "memtools/heap/_referrers.py"]  # which deletes the variable

    @pytest.mark.parametrize("path", FILES, ids=_name_of)
    def test_function_has_at_most_sixty_lines(self, path: Path) -> None:
        functions = (
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )

        long = [node.name for node in functions if _length_of(node) > 60]

        assert long == []


def _explains_itself(source: str) -> bool:
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return "a file of its own because" in " ".join(docstring.lower().split())


def _count_lines_of_code(source: str) -> int:
    no_code = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in no_code:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        has_docstring = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if has_docstring and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= {*range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1)}
    return len(lines)


def _length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    # A docstring that describes the arguments does not make a function long.
    docstring = ast.get_docstring(function, clean=False) or ""
    return (function.end_lineno or 0) - function.lineno - docstring.count("\n")


@once
class TestPublicNames:
    """What a user finds."""

    def test_every_public_name_has_a_docstring(self) -> None:
        silent = [
            f"{module.__name__}.{name}"
            for module in _public_modules()
            for name in getattr(module, "__all__", [])
            if _needs_docstring(getattr(module, name)) and not inspect.getdoc(getattr(module, name))
        ]

        assert silent == []

    def test_every_public_method_has_a_docstring(self) -> None:
        silent = [
            f"{kind.__qualname__}.{name}"
            for module in _public_modules()
            for kind in map(module.__dict__.get, getattr(module, "__all__", []))
            if isinstance(kind, type) and kind.__module__.startswith("memtools")
            for name, member in vars(kind).items()
            if not name.startswith("_") and _needs_docstring(member) and not inspect.getdoc(getattr(kind, name))
        ]

        assert silent == []

    def test_every_module_with_public_names_is_in_the_reference(self) -> None:
        reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
        public = [
            module.__name__ for module in _public_modules() if module is not memtools and hasattr(module, "__all__")
        ]

        assert [name for name in public if f".. automodule:: {name}\n" not in reference] == []

    # More are too many to learn. It was 150 before pools, bounded mappings and the adapters of servers, and 180 before
    # learned sizes (`Needs`, `needs_of`), the adapter to Ray (2), timelines (3), trends (12), pages and their
    # differences (5), and the black box (6).
    def test_packages_export_at_most_210_names(self) -> None:
        names = [
            name for module in _public_modules() if module is not memtools for name in getattr(module, "__all__", ())
        ]

        assert len(names) <= 210

    def test_top_level_namespace_holds_few_names(self) -> None:
        names = getattr(memtools, "__all__", [])

        assert len(names) <= 34
        assert all(inspect.getmodule(getattr(memtools, name)) is not memtools for name in names)


def _needs_docstring(thing: object) -> bool:
    return inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property)


def _public_modules() -> list[types.ModuleType]:
    names = (found.name for found in pkgutil.walk_packages([str(PACKAGE)], "memtools."))
    public = [name for name in names if "._" not in name and not name.endswith("__main__")]
    return [memtools, *map(importlib.import_module, public)]


class TestProject:
    """What is shipped, and what the settings say."""

    @once
    def test_setup_cfg_holds_no_metadata(self) -> None:
        settings = configparser.ConfigParser()
        settings.read(ROOT / "setup.cfg", encoding="utf-8")

        # setuptools drops the extras of pyproject.toml silently when both files hold some.
        assert settings.sections()
        assert all(section.startswith("importlinter") for section in settings.sections())

    @once
    def test_every_extra_that_the_readme_installs_exists(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

        assert "pip install '.[test]' && pytest" in (ROOT / "README.md").read_text(encoding="utf-8")
        assert "test" in project["optional-dependencies"]

    def test_type_marker_is_shipped(self) -> None:
        try:
            shipped = files("memtools") or []
        except PackageNotFoundError:
            shipped = []
        listed = [path for path in shipped if path.name == "py.typed"]
        if not listed:
            pytest.skip("memtools is not installed from a wheel here, so there is no list of what was shipped")

        assert Path(listed[0].locate()).is_file()
