"""Run a program as `python` would.

A program is a script, a compiled file, a folder, a zip file or a module.

`runpy.run_path` and `run_module` restore `__main__` when the code has ended, while threads, `atexit` calls and pickles
still need it; here it stays. For modules, folders and zip files the interpreter itself calls
`runpy._run_module_as_main`, and so does this: tracebacks show the same frames.
"""

import importlib.machinery
import os
import runpy
import sys
from pkgutil import get_importer, read_code
from types import CodeType, ModuleType
from typing import Any, cast

# The `__main__` of memtools, whose functions are still running.
_kept: list[ModuleType] = []


def run_program(program: str, arguments: tuple[str, ...], *, is_module: bool) -> None:
    """Run the program to the end of its main module.

    Raises:
        SystemExit: when it exits, or when there is no such module.
        BaseException: whatever the program raises.
    """
    _replace_main()
    if is_module:
        sys.argv[:] = ["-m", *arguments]  # as a package sees it that is imported before the module
        _run_as_main(program, alter_argv=True)
        return

    sys.argv[:] = [program, *arguments]
    program = _absolute(program)
    if get_importer(program) is not None:  # a folder or a zip file
        _replace_path0(program, always=True)
        _run_as_main("__main__", alter_argv=False)
        return

    _replace_path0(os.path.dirname(os.path.realpath(program)), always=False)
    _prepare_main(program)
    exec(_compile(program), sys.modules["__main__"].__dict__)


def require_readable(program: str) -> None:
    """Check that a script can be opened; if not, exit with the message and the code of the interpreter.

    Raises:
        SystemExit: with code 2, when it cannot be opened.
    """
    if get_importer(program) is not None:
        return
    try:
        open(program, "rb").close()
    except OSError as error:
        name = sys.orig_argv[0] if sys.orig_argv else sys.executable
        sys.stderr.write(f"{name}: can't open file {_absolute(program)!r}: [Errno {error.errno}] {error.strerror}\n")
        sys.exit(2)


def _absolute(program: str) -> str:
    # As the interpreter does: nothing is normalised.
    return os.path.join(os.getcwd(), program)


def _run_as_main(name: str, *, alter_argv: bool) -> None:
    # Private, but the interpreter's own main() has called it by this name, with these arguments, since Python 2.5.
    cast("Any", runpy)._run_module_as_main(name, alter_argv)


def _replace_main() -> None:
    _kept.append(sys.modules["__main__"])
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = sys.modules["builtins"]
    main.__loader__ = importlib.machinery.BuiltinImporter
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    sys.modules["__main__"] = main


def _prepare_main(program: str) -> None:
    main = sys.modules["__main__"]
    loader: type = importlib.machinery.SourceFileLoader
    if program.endswith(".pyc"):
        loader = importlib.machinery.SourcelessFileLoader
    main.__file__ = program
    main.__dict__["__cached__"] = None
    main.__loader__ = loader("__main__", program)


def _replace_path0(path: str, *, always: bool) -> None:
    # `-m memtools` has put the current folder first, except with -P, -I or PYTHONSAFEPATH.
    if not sys.flags.safe_path:
        sys.path[:1] = [path]
    elif always:
        sys.path.insert(0, path)


def _compile(program: str) -> CodeType:
    with open(program, "rb") as file:
        if not program.endswith(".pyc"):
            return compile(file.read(), program, "exec", dont_inherit=True)
        code: CodeType | None = read_code(file)
    if code is None:
        raise RuntimeError("Bad magic number in .pyc file")
    return code
