"""A program cannot tell whether it runs alone or under `python -m memtools run`: each end it can come to, both ways.

Real processes: what is compared is exit code, standard output, and standard error up to the report.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from memtools.commands._program import _interpreter

TIMEOUT_S = 60
REPORT = "\nmemtools: "

Result = tuple[int, str, str]
RunBoth = Callable[..., tuple[Result, Result, str]]

ENDS = {
    "comes to its end": "print('done')",
    "exits with a code": "import sys; print('out'); sys.exit(3)",
    "exits with a message": "import sys; sys.exit('so long')",
    "exits with nothing": "import sys; sys.exit()",
    "exits with a strange object": "import sys; sys.exit([1, 2])",
    "raises": "def f():\n    raise ValueError('no')\nprint('before')\nf()",
    "raises with a cause": """
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise RuntimeError('worse') from error
    """,
    "raises a group": "raise ExceptionGroup('several', [ValueError(1), OSError(2)])",
    "raises with a note": "error = ValueError('x')\nerror.add_note('look here')\nraise error",
    "has a syntax error": "x = = 1",
    "has an indentation error": "if True:\nx = 1",
    "has an unclosed bracket": "x = (1,\n",
    "raises what has no text": "class Odd(BaseException):\n    def __str__(self):\n        raise ValueError\nraise Odd",
    "sets an excepthook": """
        import sys, traceback
        def hook(kind, error, trace):
            print('hook', kind.__name__, error, [frame.name for frame in traceback.extract_tb(trace)])
        sys.excepthook = hook
        def f(): raise KeyError('k')
        f()
    """,
    "has a broken excepthook": """
        import sys
        def hook(kind, error, trace):
            raise ValueError('the hook')
        sys.excepthook = hook
        raise KeyError('k')
    """,
    "has an excepthook that exits": "import sys\nsys.excepthook = lambda *a: sys.exit(7)\nraise KeyError('k')",
    "interrupts itself": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(5)",
    "interrupts itself in asyncio": """
        import asyncio, os, signal
        async def main():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                print('cancelled')
                raise
        asyncio.run(main())
    """,
    "handles the interrupt": """
        import os, signal, sys, time
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            print('tidied')
            sys.exit(4)
    """,
    "joins threads and runs atexit calls in order": """
        import atexit, threading, time
        atexit.register(print, 'first registered')
        atexit.register(print, 'last registered')
        def work():
            time.sleep(0.2)
            print('thread')
        threading.Thread(target=work).start()
        print('main')
    """,
    "raises in a thread": """
        import threading
        def work(): raise ValueError('in a thread')
        thread = threading.Thread(target=work, name='worker')
        thread.start()
        thread.join()
    """,
    "exits while a thread works": """
        import sys, threading, time
        threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()
        sys.exit(5)
    """,
    "writes at the very end": """
        import sys
        class Late:
            def __del__(self): sys.stdout.write('finaliser\\n')
        late = Late()
        sys.stdout.write('no newline')
    """,
    "raises in an atexit call": "import atexit\natexit.register(lambda: 1 / 0)\nprint('x')",
    "looks at itself": """
        import sys
        names = ('__name__', '__file__', '__package__', '__spec__', '__cached__', '__doc__', '__annotations__')
        print([(name, globals().get(name, 'absent')) for name in names])
        print(type(__loader__).__name__, __loader__.name, __loader__.path)
        print(__builtins__, sys.argv, sys.path, sorted(globals()))
        print(sys.modules['__main__'].__dict__ is globals(), sys.modules['__main__'])
    """,
    "reads its input": "import sys; print(sys.stdin.read().upper()); print(input.__name__)",
    "pickles classes of its own": """
        import pickle
        class Point:
            def __init__(self, x): self.x = x
        print(pickle.loads(pickle.dumps(Point(3))).x, pickle.dumps(Point(4)))
    """,
    "closes stdout": "import sys; print('x', flush=True); sys.stdout.close()",
    "replaces stdout": "import io, sys; sys.stdout = io.StringIO(); print('lost')",
    "leaves by os._exit": "import os, sys\nprint('x', flush=True)\nos._exit(9)",
    "forks": """
        import os, sys
        print('once', flush=True)
        child = os.fork()
        if child == 0:
            print('child', flush=True)
            sys.exit(6)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """,
    "forks by multiprocessing": """
        import multiprocessing
        def double(x): return 2 * x
        if __name__ == '__main__':
            with multiprocessing.get_context('fork').Pool(2) as pool:
                print(pool.map(double, range(5)))
    """,
    "spawns by multiprocessing": """
        import multiprocessing
        class Point:
            def __init__(self, x): self.x = x
        def double(point): return Point(2 * point.x)
        if __name__ == '__main__':
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                print([point.x for point in pool.map(double, map(Point, range(3)))])
    """,
    "has a process pool": """
        import asyncio, concurrent.futures, multiprocessing
        def double(x): return 2 * x
        async def main():
            loop = asyncio.get_running_loop()
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                print(await loop.run_in_executor(pool, double, 21))
        if __name__ == '__main__':
            asyncio.run(main())
    """,
}


IN_MODULES = (
    "raises", "exits with a code", "exits with a message", "interrupts itself", "looks at itself", "has a syntax error",
)  # fmt: skip
PLACES = (
    "folder", "program.zip a --b", "./folder/", "folder/../folder/part.py", "./folder/part.py -x", "link.py",
)  # fmt: skip


@pytest.fixture
def run_both(tmp_path: Path) -> RunBoth:
    """Run a command line alone and under memtools; return both results, and the report."""

    def both(*words: str, python: tuple[str, ...] = (), stdin: str = "", **options: str) -> tuple[Result, Result, str]:
        alone = _run([*python, *words], tmp_path, stdin, options)
        code, out, err = _run([*python, "-m", "memtools", "run", *words], tmp_path, stdin, options)
        before, found, report = err.partition(REPORT)
        return alone, (code, out, before), found + report

    return both


def _run(words: list[str], folder: Path, stdin: str, options: dict[str, str]) -> Result:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", **options}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, input=stdin, capture_output=True, text=True,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    return done.returncode, _without_addresses(done.stdout), _without_addresses(done.stderr)


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", text)


@pytest.mark.parametrize("source", ENDS.values(), ids=ENDS)
def test_script_ends_as_it_ends_alone(source: str, run_both: RunBoth, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(source), encoding="utf-8")

    alone, under, report = run_both("program.py", "--json", "-m", "x", stdin="some text")

    assert under == alone
    assert ("program.py" in report) == ("os._exit" not in source or _interpreter is not None)


@pytest.mark.parametrize("name", IN_MODULES)
@pytest.mark.parametrize("module", ["program", "package", "package.inner"])
def test_module_ends_as_it_ends_alone(name: str, module: str, run_both: RunBoth, tmp_path: Path) -> None:
    source = textwrap.dedent(ENDS[name]).replace("__loader__.name, __loader__.path", "__loader__")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import sys; print('package', sys.argv)")
    for place in ("program.py", "package/__main__.py", "package/inner.py"):
        (tmp_path / place).write_text(source.replace("print(__builtins__", "print(__builtins__.__name__"))

    alone, under, report = run_both("-m", module, "--json", "x", "-m")

    assert under == alone
    assert module in report


@pytest.mark.parametrize("words", ["nope.py", "-m nope", "-m package", "-m nope.py", "folder", "-m broken"])
def test_unstartable_program_is_refused_as_by_python(words: str, run_both: RunBoth, tmp_path: Path) -> None:
    for folder in ("package", "folder"):
        (tmp_path / folder).mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")

    alone, under, _ = run_both(*words.split())

    assert under == alone
    assert alone[0] != 0


@pytest.mark.parametrize("words", PLACES)
@pytest.mark.parametrize("python", [(), ("-P",), ("-O",)], ids=["plain", "safe-path", "optimised"])
def test_folders_zip_files_and_links_run_as_alone(
    words: str, python: tuple[str, ...], run_both: RunBoth, tmp_path: Path
) -> None:
    source = (
        "import sys\n"
        "print(__name__, __file__, __package__, __spec__, sys.argv, sys.path, __debug__)\n"
        "print(sys.modules['__main__'].__dict__ is globals(), sorted(globals()))\n"
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text(source)
    (tmp_path / "folder" / "part.py").write_text(source)
    (tmp_path / "link.py").symlink_to("folder/part.py")
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
        archive.writestr("__main__.py", source)

    alone, under, report = run_both(*words.split(), python=python)

    assert under == alone
    assert report


def test_compiled_file_runs_as_it_runs_alone(run_both: RunBoth, tmp_path: Path) -> None:
    source = tmp_path / "program.py"
    source.write_text("import sys; print(__file__, type(__loader__).__name__, sys.argv, sys.path[0])")
    subprocess.run(
        [sys.executable, "-c", "import py_compile; py_compile.compile('program.py', cfile='program.pyc')"],
        cwd=tmp_path, check=True, timeout=TIMEOUT_S,
    )  # fmt: skip

    alone, under, report = run_both("program.pyc", "x")

    assert under == alone
    assert "program.pyc" in report


def test_script_in_other_encodings_runs_as_alone(run_both: RunBoth, tmp_path: Path) -> None:
    text = "# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n"
    (tmp_path / "program.py").write_bytes(text.encode("latin-1"))

    alone, under, _ = run_both("program.py")

    assert under == alone
    assert alone[1] == "'\\xe9'\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_signal_from_outside_ends_it_as_alone(number: signal.Signals, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('ready', flush=True)\nimport time\ntime.sleep(30)")

    ends = [_signalled(words, number) for words in ([str(program)], ["-m", "memtools", "run", str(program)])]

    assert ends[0][0] == ends[1][0] == -number
    # Where it was hit is luck; that it was hit in the program's own code is not.
    before = ends[1][1].partition(REPORT)[0]
    assert (
        before.splitlines()[:1] + before.splitlines()[-1:] == ends[0][1].splitlines()[:1] + ends[0][1].splitlines()[-1:]
    )
    assert "memtools" not in before
    # Only Ctrl-C leaves the interpreter running to report.
    assert (REPORT in ends[1][1]) == (number == signal.SIGINT)


def _signalled(words: list[str], number: signal.Signals) -> tuple[int, str]:
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(number)
        _, err = child.communicate(timeout=TIMEOUT_S)
        return child.returncode, err
