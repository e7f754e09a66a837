"""A program under `memtools run` meets its own modules, stack and signals, and whatever way it is given.

Real processes, each run alone and under memtools, by `python -m` and by the console script.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import memtools
from memtools.commands._program import _interpreter
from memtools.ledger import native_reason

TIMEOUT_S = 60
REPORT = "\nmemtools: "
MODULE = ("-m", "memtools", "run")

Result = tuple[int, str, str]
RunProgram = Callable[..., Result]

needs_extension = pytest.mark.skipif(_interpreter is None, reason="the C extension was not built")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")

# Loaded by memtools or by `python -m` in some version of Python, and plausible as the name of a program's module.
NAMES = (
    "asyncio", "bisect", "dataclasses", "html", "inspect", "json", "logging", "pickle", "platform", "psutil", "queue",
    "random", "resource", "selectors", "shutil", "signal", "socket", "string", "subprocess", "tempfile", "tracemalloc",
    "typing_extensions", "wrapt",
)  # fmt: skip
EARLY_NAMES = ("collections", "contextlib", "enum", "functools", "re", "types", "typing", "warnings")

STACKS = {
    "looks below its first frame": "import sys\nprint(sys._getframe().f_back)\nsys._getframe(1)",
    "inspects its stack": "import inspect\nprint([(frame.function, frame.lineno) for frame in inspect.stack()])",
    "prints its stack": "import traceback\ndef f():\n    traceback.print_stack()\nf()",
    "warns its caller": """
        import warnings
        def f():
            warnings.warn("two", stacklevel=2)
            warnings.warn("nine", stacklevel=9)
        f()
        warnings.warn("of the main module", stacklevel=2)
    """,
    "logs with the caller's place": """
        import logging
        logging.basicConfig(format="%(filename)s:%(funcName)s:%(lineno)d %(message)s")
        logging.warning("one")
        logging.warning("two", stacklevel=2)
        logging.warning("with its stack", stack_info=True)
    """,
    "calls itself to the limit": """
        import sys
        def deepest(depth):
            try:
                return deepest(depth + 1)
            except RecursionError:
                return depth
        print(deepest(0))
        sys.setrecursionlimit(300)
        print(deepest(0))
    """,
    "handles a signal": """
        import os, signal
        signal.signal(signal.SIGUSR1, lambda number, frame: print(frame.f_code.co_name, frame.f_back))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    """,
    "has a hook that looks at its stack": """
        import sys, traceback
        def hook(kind, error, trace):
            traceback.print_stack()
            print(kind, globals().get("__file__"), len(traceback.extract_tb(trace)))
        sys.excepthook = hook
        1 / 0
    """,
    "loses its file at its end": """
        import atexit, sys
        atexit.register(lambda: print(sorted(globals()), sys._getframe().f_back))
    """,
    "exits with its file or without": """
        import atexit, sys
        atexit.register(lambda: print(globals().get("__file__")))
        sys.exit(3)
    """,
    "leaves a trace function behind": """
        import atexit, os, sys
        def trace(frame, event, argument):
            os.write(1, f"{event} {frame.f_code.co_name}\\n".encode())
        def last():
            pass
        atexit.register(last)
        sys.settrace(trace)
    """,
    "leaves a monitoring tool behind": """
        import atexit, os, sys
        def last():
            pass
        atexit.register(last)
        monitoring = getattr(sys, "monitoring", None)
        if monitoring:
            def started(code, offset):
                os.write(1, f"{code.co_name} ".encode())
            monitoring.use_tool_id(4, "program")
            monitoring.register_callback(4, monitoring.events.PY_START, started)
            monitoring.set_events(4, monitoring.events.PY_START)
    """,
    "leaves a profile function behind": """
        import os, sys
        sys.setprofile(lambda frame, event, argument: os.write(1, f"{event} {frame.f_code.co_name}\\n".encode()))
    """,
    "shows what sends signals": """
        import inspect, os, signal
        for function in (os.kill, os.killpg, signal.raise_signal, signal.pthread_kill):
            print(function, function.__module__, inspect.signature(function), inspect.isbuiltin(function))
    """,
    "switches greenlets": """
        import greenlet, sys
        main = greenlet.getcurrent()
        def other():
            print(sys._getframe().f_back)
            main.switch()
        greenlet.greenlet(other).switch()
        print(sys._getframe().f_back)
    """,
}

SENDERS = {
    "os.kill": "os.kill(os.getpid(), number)",
    "os.kill of the group": "os.kill(0, number)",
    "os.killpg": "os.killpg(os.getpgrp(), number)",
    "signal.raise_signal": "signal.raise_signal(number)",
    "signal.pthread_kill": "signal.pthread_kill(threading.get_ident(), number)",
    "os.kill in a thread": "threading.Thread(target=os.kill, args=(os.getpid(), number)).start()",
}


@pytest.fixture
def run(tmp_path: Path) -> RunProgram:
    """Run the interpreter in the folder of the test; return exit code, output, and errors up to the report."""

    def run(*words: str, stdin: str = "", folder: Path = tmp_path, **variables: str) -> Result:
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables},
            input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, start_new_session=True,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def console(tmp_path: Path) -> tuple[str, ...]:
    """Return a command line that runs what the console script of an installation runs."""
    script = tmp_path / "bin" / "memtools"
    script.parent.mkdir()
    script.write_text("import sys\nfrom memtools.commands._main import main\nsys.exit(main())\n")
    return (str(script), "run")


def _before_report(result: Result) -> Result:
    code, out, err = result
    return code, out, err.partition(REPORT)[0]


class TestModules:
    """Modules of the program that have the names of others."""

    @pytest.mark.parametrize("way", ["-m", "console"])
    @pytest.mark.parametrize("words", ["main.py", "-m main", "inner/main.py", "inner"])
    def test_program_meets_its_own_modules_of_any_name(
        self, words: str, way: str, run: RunProgram, console: tuple[str, ...], tmp_path: Path
    ) -> None:
        folder = tmp_path / "inner" if words.startswith("inner") else tmp_path
        folder.mkdir(exist_ok=True)
        # `python -m` and the start of a folder import these themselves, from the program's folder.
        is_script = words.endswith(".py") and (folder != tmp_path or way == "console")
        names = [*NAMES, *EARLY_NAMES] if is_script else NAMES
        source = f"for name in {names}:\n    print(name, getattr(__import__(name), 'OWN', None))\n"
        for name in ("main", "__main__"):
            (folder / f"{name}.py").write_text(source)
        for name in names:
            (folder / f"{name}.py").write_text(f"OWN = {name!r}\n")

        alone = run(*words.split())
        under = run(*(MODULE if way == "-m" else console), *words.split())

        assert _before_report(under) == alone
        assert "queue queue" in alone[1]
        assert REPORT in under[2]

    def test_package_hides_the_library_s_with_its_parts(self, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "json").mkdir()
        (tmp_path / "json" / "__init__.py").write_text("")
        (tmp_path / "json" / "decoder.py").write_text("OWN = 1\n")
        (tmp_path / "main.py").write_text("import json.decoder\nprint(json.decoder.OWN, hasattr(json, 'loads'))\n")

        code, out, _ = run(*MODULE, "--json", "report.json", "main.py")

        assert (code, out) == (0, "1 False\n")
        assert json.loads((tmp_path / "report.json").read_text())["title"] == "main.py"

    def test_folder_without_code_hides_nothing(self, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "queue").mkdir()
        (tmp_path / "main.py").write_text("import queue\nprint(queue.Queue.__name__)\n")

        assert run(*MODULE, "main.py")[:2] == run("main.py")[:2] == (0, "Queue\n")

    def test_modules_on_pythonpath_are_the_program_s(self, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "selectors.py").write_text("OWN = 1\n")
        (tmp_path / "main.py").write_text("import selectors\nprint(selectors.OWN)\n")
        path = os.pathsep.join(["lib", *filter(None, [os.environ.get("PYTHONPATH")])])

        assert run(*MODULE, "main.py", PYTHONPATH=path)[:2] == (0, "1\n")

    def test_program_finds_a_module_that_it_writes_at_once(self, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "main.py").write_text("open('late.py', 'w').close()\nimport late\nprint(late.__name__)\n")

        assert run(*MODULE, "main.py")[:2] == (0, "late\n")

    def test_pytest_passes_with_warnings_as_errors(self, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "test_one.py").write_text("def test_one():\n    assert 1 + 1 == 2\n")
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
        )

        code, out, err = run(*MODULE, "-m", "pytest", "-p", "no:cacheprovider")

        assert code == 0, out + err
        assert "1 passed" in out


class TestStack:
    """What the program sees of its stack."""

    @needs_extension
    @posix_only
    @pytest.mark.parametrize("source", STACKS.values(), ids=STACKS)
    def test_script_sees_the_stack_that_it_sees_alone(self, source: str, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(textwrap.dedent(source))

        assert _before_report(run(*MODULE, "program.py")) == run("program.py")

    @needs_extension
    def test_module_sees_the_stack_that_it_sees_alone(self, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text("import traceback, inspect\ntraceback.print_stack()\ninspect.stack()")

        assert _before_report(run(*MODULE, "-m", "program")) == run("-m", "program")

    @needs_extension
    def test_debugger_steps_as_alone(self, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text("def f():\n    breakpoint()\n    return 1\nprint(f())\nprint('end')\n")
        steps = "where\nup\nup\nnext\nnext\n"

        assert _before_report(run(*MODULE, "program.py", stdin=f"{steps}continue\n")) == run(
            "program.py", stdin=f"{steps}continue\n"
        )
        beyond = run(*MODULE, "program.py", stdin=steps + "next\n" * 9)[1]
        assert "--Return--" in beyond
        assert "memtools" not in beyond

    @pytest.mark.parametrize("python", [("-W", "error", "-X", "dev"), ("-P",), ("-O",), ("-s",)], ids="".join)
    def test_options_of_the_interpreter_reach_the_program(
        self, python: tuple[str, ...], run: RunProgram, tmp_path: Path
    ) -> None:
        (tmp_path / "program.py").write_text("import sys\nprint(sys.flags, sys.warnoptions, sys.path, sys.argv)\n1 / 0")

        assert _before_report(run(*python, *MODULE, "program.py", "x")) == run(*python, "program.py", "x")


class TestSources:
    """The ways in which a program is given."""

    @pytest.mark.parametrize("code", [
        "import sys; print(sys.argv, sys.path[0], sorted(globals()), __name__)",
        "def f():\n    raise ValueError('no')\nf()",
        "x = = 1",
        "raise KeyboardInterrupt",
        "import sys; sys.exit('text')",
        "import warnings; warnings.warn('look')",
    ])  # fmt: skip
    def test_code_on_the_command_line_runs_as_alone(self, code: str, run: RunProgram) -> None:
        assert _before_report(run(*MODULE, "-c", code, "--json", "-m")) == run("-c", code, "--json", "-m")

    @pytest.mark.parametrize("source", [
        "import sys\nprint(sys.argv, sys.path[0], __file__, sorted(globals()))\nprint(sys.stdin.read())",
        "def f():\n    raise ValueError('no')\nf()",
        "x = = 1",
    ])  # fmt: skip
    def test_standard_input_runs_as_alone(self, source: str, run: RunProgram) -> None:
        assert _before_report(run(*MODULE, "-", "a", stdin=source)) == run("-", "a", stdin=source)

    @posix_only
    def test_named_pipe_is_opened_once(self, run: RunProgram, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_text, args=("print('from a pipe', __file__)",))
        writer.start()

        code, out, _ = run(*MODULE, str(pipe))

        writer.join()
        assert (code, out) == (0, f"from a pipe {pipe}\n")

    @posix_only
    def test_folder_that_is_gone_is_met_as_alone(self, run: RunProgram, tmp_path: Path) -> None:
        program = tmp_path / "program.py"
        program.write_text("import sys\nprint(sys.path)\n")
        gone = tmp_path / "gone"
        line = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'

        ends = [
            subprocess.run(
                ["sh", "-c", line, gone, sys.executable, *before, program], capture_output=True, text=True,
                timeout=TIMEOUT_S, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
            for before in ((), MODULE)
        ]  # fmt: skip

        assert ends[1].stdout == ends[0].stdout
        assert ends[1].returncode == ends[0].returncode == 0

    def test_module_without_its_option_is_told_what_to_type(self, run: RunProgram, console: tuple[str, ...]) -> None:
        code, _, err = run(*MODULE, "uvicorn", "app:app")

        assert code == 2
        assert "python -m memtools run -m uvicorn app:app" in err
        assert "memtools run -m uvicorn app:app" in run(*console[:1], "uvicorn", "app:app")[2]

    def test_interactive_mode_follows_the_program(self, run: RunProgram, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text("answer = 42\n")

        code, out, err = run("-i", *MODULE, "program.py", stdin="print(answer)\n")

        assert (code, out) == (0, "42\n")
        assert "SystemExit" not in err


class TestReport:
    """When and where the report is printed."""

    @needs_extension
    @posix_only
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    @pytest.mark.parametrize("send", SENDERS.values(), ids=SENDERS)
    def test_report_comes_before_a_signal_that_is_sent_again(
        self, send: str, number: signal.Signals, run: RunProgram, tmp_path: Path
    ) -> None:
        (tmp_path / "program.py").write_text(
            "import os, signal, sys, threading, time\n"
            "def handler(number, frame):\n"
            "    signal.signal(number, signal.SIG_DFL)\n"
            "    sys.stdout.write('not flushed')\n"
            f"    {send}\n"
            f"signal.signal({int(number)}, handler)\n"
            f"signal.raise_signal({int(number)})\n"
            "time.sleep(30)\n"
        )

        alone, under = run("program.py"), run(*MODULE, "--json", "-", "program.py")

        assert alone[0] == under[0] == -number
        assert json.loads(under[1].removeprefix(alone[1]))["title"] == "program.py"
        assert under[2].count(REPORT) == 1

    def test_report_without_children_has_no_caveat(self, run: RunProgram) -> None:
        _, out, err = run(*MODULE, "--json", "-", "-c", "print(end='')")

        assert json.loads(out)["caveats"] == []
        assert "child" not in err

    def test_two_reports_on_standard_output_are_refused(self, run: RunProgram) -> None:
        code, out, err = run(*MODULE, "--json", "-", "--html", "-", "-c", "print(1)")

        assert (code, out) == (2, "")
        assert "cannot both be written to standard output" in err

    @pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
    def test_source_that_hides_the_installed_package_is_named(self, run: RunProgram, tmp_path: Path) -> None:
        package = Path(memtools.__file__).parent
        installed, checkout = tmp_path / "installed", tmp_path / "checkout"
        for folder in (installed, checkout):
            shutil.copytree(package, folder / "memtools")
        for extension in checkout.rglob("*.so"):
            extension.unlink()

        _, _, err = run(*MODULE, "-c", "pass", folder=checkout, PYTHONPATH=str(installed))

        assert f"hides the one installed in {installed}" in err
        assert "python -P -m memtools run" in err

    def test_installed_package_without_extensions_hides_nothing(self, run: RunProgram, tmp_path: Path) -> None:
        package = Path(memtools.__file__).parent
        installed, checkout = tmp_path / "installed", tmp_path / "checkout"
        for folder in (installed, checkout):
            shutil.copytree(package, folder / "memtools", ignore=shutil.ignore_patterns("*.so", "*.pyd"))

        code, _, err = run(*MODULE, "-c", "pass", folder=checkout, PYTHONPATH=str(installed))

        assert code == 0
        assert "hides the one" not in err

    @posix_only
    def test_facts_in_a_closed_pipe_end_quietly(self, tmp_path: Path) -> None:
        line = f'"{sys.executable}" -m memtools info | head -n 1'

        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=TIMEOUT_S)

        assert done.stdout == "versions\n"
        assert done.stderr == ""
