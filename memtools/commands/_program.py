"""Run a program as `python` would.

A program is a script, a compiled file, a folder, a zip file, a module, code on the command line or standard input.

`runpy.run_path` and `run_module` restore `__main__` when the code has ended, while threads, `atexit` calls and pickles
still need it; here it stays. For modules, folders and zip files the interpreter itself calls
`runpy._run_module_as_main`, and so does this: tracebacks show the same frames. Below them stand no frames of memtools,
where the C extension was built.
"""

import atexit
import builtins
import importlib.machinery
import importlib.util
import linecache
import marshal
import os
import runpy
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pkgutil import get_importer
from types import CodeType, ModuleType
from typing import Any, Final, Literal, cast

from memtools._records import record
from memtools.commands._modules import hide_shadowed_modules, is_module, leave_out_first_folder, set_first_folder

_interpreter: Any = None  # Any: the extension, which may not have been built
with suppress(ImportError):
    _interpreter = import_module("memtools.commands._interpreter")

ProgramKind = Literal["script", "module", "code", "stdin"]

_MAGIC: Final = importlib.util.MAGIC_NUMBER
_HEADER_BYTES: Final = 16  # of a compiled file (PEP 552)

# The `__main__` of memtools, whose functions are still running.
_kept: list[ModuleType] = []


@record
class Program:
    """What is to be run.

    Attributes:
        name: the path of a script, folder or zip file, the name of a module, the code itself, or `-`.
        kind: which of them.
        arguments: those of the program.
    """

    name: str
    kind: ProgramKind
    arguments: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the program is called in the report."""
        if self.kind == "script":
            return os.path.basename(self.name.rstrip("/\\")) or self.name
        return "-c" if self.kind == "code" else self.name

    def load(self) -> "Callable[[], None]":
        """Read the program as far as the interpreter reads it first; return the function that runs it.

        A script is opened once, since it may be a pipe.

        Raises:
            SystemExit: with code 2, when a script cannot be opened.
        """
        if self.kind == "module":
            return self._run_module
        if self.kind == "code":
            return self._run_code
        if self.kind == "stdin":
            return self._run_stdin
        if get_importer(self.name) is not None:
            return self._run_folder
        source = [_read_script(self.name, self.arguments)]
        return lambda: self._run_script(source.pop())

    def _run_module(self) -> None:
        _replace_main()
        sys.argv[:] = ["-m", *self.arguments]  # as a package sees it that is imported before the module
        folder = _current_folder()
        if folder is None:
            leave_out_first_folder()
        else:
            set_first_folder(folder)
        hide_shadowed_modules()
        _run_as_main(self.name, alter_argv=True)

    def _run_folder(self) -> None:
        _replace_main()
        sys.argv[:] = [self.name, *self.arguments]
        set_first_folder(_absolute(self.name), always=True)
        hide_shadowed_modules()
        _run_as_main("__main__", alter_argv=False)

    def _run_script(self, source: bytes) -> None:
        path = _absolute(self.name)
        is_compiled = self.name.endswith(".pyc") or source[:2] == _MAGIC[:2]
        loader: type = importlib.machinery.SourceFileLoader
        if is_compiled:
            loader = importlib.machinery.SourcelessFileLoader
        main = self._prepare(self.name, os.path.dirname(os.path.realpath(path)))
        _set_file(main, path)
        main.__loader__ = loader("__main__", path)
        self._execute(main, _load_compiled(source) if is_compiled else _compile(source, path))

    def _run_code(self) -> None:
        main = self._prepare("-c", "")
        source = textwrap.dedent(self.name) if sys.version_info >= (3, 14) else self.name
        code = _compile(source, "<string>")
        if sys.version_info >= (3, 13):  # tracebacks show the lines
            key = code if sys.version_info >= (3, 14) else "<string>"
            cast("Any", linecache)._register_code(key, source, "<string>")
        call_at_bottom(code, main.__dict__)

    def _run_stdin(self) -> None:
        main = self._prepare("-", "")
        _set_file(main, "<stdin>")
        self._execute(main, _compile(sys.stdin.buffer.read() if sys.stdin is not None else b"", "<stdin>"))

    def _prepare(self, argument: str, folder: str) -> ModuleType:
        main = _replace_main()
        sys.argv[:] = [argument, *self.arguments]
        set_first_folder(folder) if not sys.flags.safe_path else leave_out_first_folder()
        hide_shadowed_modules()
        return main

    def _execute(self, main: ModuleType, code: CodeType) -> None:
        try:
            call_at_bottom(code, main.__dict__)
        except BaseException:
            if sys.version_info >= (3, 14):  # before it, after the error has been shown, and not where it exits
                forget_file()
            raise
        forget_file()


def call_at_bottom(callee: Callable[..., object] | CodeType, /, *args: Any) -> object:  # Any: those of the callee
    """Call a function, or run code in the dict `args[0]`; with the extension it sees no frame of memtools."""
    if _interpreter is not None:
        result: object = _interpreter.call_at_bottom(callee, *args)
        return result
    if isinstance(callee, CodeType):
        exec(callee, *args)
        return None
    return callee(*args)


def untraced(function: Callable[[], object]) -> Callable[[], object]:
    """Return a function that does the same, and that no trace or profile function of the program sees."""
    return function if _interpreter is None else partial(_interpreter.call_untraced, function)


@contextmanager
def resumed_at_exit() -> Generator[None, None, None]:
    """Keep the end of memtools' own frames from the trace and profile functions that the program has left behind.

    They see the program's `atexit` calls again. Those that were there before the program, as of coverage, see all.
    """
    if _interpreter is None:
        yield
        return
    is_traced = sys.gettrace() is not None or sys.getprofile() is not None
    try:
        yield
    finally:
        if is_traced:
            _interpreter.resume_tracing()
        else:
            atexit.register(_interpreter.resume_tracing)


def register_last(function: Callable[[], object]) -> None:
    """Register an `atexit` call that is the last one of the program, and that no trace or profile function sees."""
    if _interpreter is not None:
        atexit.register(_interpreter.pause_tracing)
    atexit.register(untraced(function))


def before_death(callback: Callable[[], object]) -> None:
    """Call back before the process kills itself by a signal; never where the extension was not built, or on Windows."""
    if can_follow():
        _interpreter.before_death(callback)


def before_exit(callback: Callable[[], object]) -> None:
    """Call back before `os._exit` ends the process; never where the extension was not built, or on Windows."""
    if can_follow():
        _interpreter.before_exit(callback)


def around_starts(
    prepare: Callable[[str, tuple[Any, ...]], tuple[Any, ...]],  # Any: the arguments of the functions
    started: Callable[[str, tuple[Any, ...], int], object],
) -> None:
    """Call back before and after another program is started; never where the extension was not built, or on Windows."""
    if can_follow():
        _interpreter.around_starts(prepare, started)


def can_follow() -> bool:
    """Return whether this process can notice its own end and the programs that it starts."""
    return _interpreter is not None and sys.platform != "win32"


def environment_lines() -> list[bytes]:
    """Return the environment of this process as the system has it, `NAME=value` each."""
    found: list[bytes] = _interpreter.environment()
    return found


def command_name() -> str:
    """Return how the user has called memtools."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return "memtools" if name in ("memtools", "memtools.exe") else "python -m memtools"


def hint(name: str, arguments: Sequence[str]) -> str:
    """Return what to type where the name of a module or of a command was given as a script; empty for other names."""
    path = shutil.which(name) if os.sep not in name else None
    if is_module(name):
        words = ["-m", name, *arguments]
    elif path is not None and _is_python_script(path):
        words = [path, *arguments]
    else:
        return ""
    return f"{command_name()} run {shlex.join(words)}"


def forget_file() -> None:
    """Remove `__file__` of the main script, as the interpreter does when the script has ended, by an error or not."""
    main = sys.modules.get("__main__")
    if main is not None and getattr(main, "__spec__", None) is None:
        vars(main).pop("__file__", None)
        vars(main).pop("__cached__", None)


def _read_script(name: str, arguments: Sequence[str]) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        python = sys.orig_argv[0] if sys.orig_argv else sys.executable
        sys.stderr.write(f"{python}: can't open file {_absolute(name)!r}: [Errno {error.errno}] {error.strerror}\n")
        if advice := hint(name, arguments):
            sys.stderr.write(f"memtools: {name} is no file here; to run what is installed: {advice}\n")
        sys.exit(2)


def _is_python_script(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            line = file.readline(200)
    except OSError:
        return False
    return line.startswith(b"#!") and b"python" in line


def _absolute(name: str) -> str:
    # As the interpreter does: nothing is normalised.
    folder = _current_folder()
    return name if folder is None else os.path.join(folder, name)


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _run_as_main(name: str, *, alter_argv: bool) -> None:
    # Private, but the interpreter's own main() has called it by this name, with these arguments, since Python 2.5.
    call_at_bottom(cast("Any", runpy)._run_module_as_main, name, alter_argv)


def _replace_main() -> ModuleType:
    _kept.append(sys.modules["__main__"])
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    main.__loader__ = importlib.machinery.BuiltinImporter
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    return main


def _set_file(main: ModuleType, path: str) -> None:
    main.__file__ = path
    if sys.version_info < (3, 15):
        main.__dict__["__cached__"] = None


def _compile(source: bytes | str, filename: str) -> CodeType:
    return compile(source, filename, "exec", dont_inherit=True)


def _load_compiled(source: bytes) -> CodeType:
    if source[:4] != _MAGIC:
        raise RuntimeError("Bad magic number in .pyc file")
    code: object = marshal.loads(source[_HEADER_BYTES:])
    if not isinstance(code, CodeType):
        raise RuntimeError("Bad code object in .pyc file")
    return code
