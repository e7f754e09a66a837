"""`memtools run` follows the processes that the program starts, reports each, and changes none of them.

Real processes: forks, programs, and those of `multiprocessing` by each of its methods.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memtools.commands._program import _interpreter
from memtools.ledger import native_reason

TIMEOUT_S = 120
REPORT = "\nmemtools: "
MODULE = ("-m", "memtools", "run")
MIB = 2**20

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="children are followed on POSIX systems"),
    pytest.mark.skipif(_interpreter is None, reason="the C extension was not built"),
]
needs_native = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

Run = Callable[..., tuple[int, str, str]]

# Prints all that a program can see of the way in which it was started.
LOOK = """
import os, sys
names = {name.partition(".")[0] for name in sys.modules}
print(sorted(os.environ.items()), sys.path, sys.argv, sys.flags, sys.executable, sys.orig_argv)
print("sitecustomize" in sys.modules, [name for name in sys.path_importer_cache if "child_path" in name])
import sitecustomize
"""

METHODS = """
import multiprocessing, sys, time
kept = []
def begin(all_of_them):
    global barrier
    barrier = all_of_them
def keep_each(size):
    barrier.wait()
    keep(size)
    time.sleep(2)  # and be written down
def keep(size):
    kept.append(bytearray(size << 20))
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the interpreter in the folder of the test; folders for temporary files are below it."""
    (tmp_path / "tmp").mkdir()

    def run(*words: str, **variables: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path / "tmp"), **variables},
            start_new_session=True,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def run_children(run: Run, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run a program under memtools and return what its report says of its children."""

    def run_children(source: str, *words: str, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        (tmp_path / "program.py").write_text(textwrap.dedent(source))
        code, _, err = run(*MODULE, "--json", "report.json", *options, "program.py", *words)
        assert code == 0, err
        assert list((tmp_path / "tmp").glob("memtools-run-*")) == []
        found: list[dict[str, Any]] = json.loads((tmp_path / "report.json").read_text()).get("children", [])
        return found

    return run_children


RunChildren = Callable[..., list[dict[str, Any]]]


def _live(child: dict[str, Any]) -> float:
    live: int = child["report"]["process"]["owned_bytes"]
    return live / MIB


class TestForks:
    """A child of `os.fork` is measured from the fork on."""

    ENDS = {  # noqa: RUF012  # read only
        "os._exit": "os._exit(3)",
        "the end of the program": "sys.exit(3)",
        "an error": "sys.stderr = open(os.devnull, 'w')\n    raise KeyError",
        "a signal that it sends itself": "os.kill(os.getpid(), signal.SIGTERM)",
    }

    @needs_native
    @pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
    def test_child_has_its_own_figures_however_it_ends(self, end: str, run_children: RunChildren) -> None:
        (child,) = run_children(f"""
            import os, signal, sys
            of_the_parent = bytearray(40 << 20)
            pid = os.fork()
            if not pid:
                kept = bytearray(10 << 20)
                {textwrap.indent(end, " " * 12).lstrip()}
            os.waitpid(pid, 0)
        """)

        assert (child["title"], child["end"]) == ("program.py (fork)", "ended")
        assert _live(child) == pytest.approx(10, abs=1)
        assert [row["name"] for row in child["report"]["scopes"]] == ["program.py (fork)"]

    @pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os.execv('/bin/true', ['true'])", "os.abort()"])
    def test_child_that_leaves_no_report_is_named_all_the_same(self, end: str, run_children: RunChildren) -> None:
        (child,) = run_children(f"""
            import os, resource
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            pid = os.fork()
            if not pid:
                {end}
            os.waitpid(pid, 0)
        """)

        assert (child["end"], child["report"]) == ("killed", None)

    @needs_native
    def test_children_of_children_are_followed(self, run_children: RunChildren) -> None:
        children = run_children("""
            import os, subprocess, sys
            for size in (10, 20, 30):
                if os.fork():
                    os.wait()
                    break
                kept = bytearray(size << 20)
            else:
                subprocess.run([sys.executable, "-c", "kept = bytearray(40 << 20)"])
        """)

        assert sorted(round(_live(child)) for child in children) == [10, 20, 30, 40]
        assert len({child["parent"] for child in children}) == 4

    def test_child_that_is_still_running_is_said_to(self, run_children: RunChildren, tmp_path: Path) -> None:
        (child,) = run_children("""
            import os, time
            reader, writer = os.pipe()
            if os.fork():
                os.read(reader, 1)
            else:
                os.write(writer, b"x")
                os.closerange(0, 3)
                while not os.path.exists("end"):
                    time.sleep(0.05)
                os._exit(0)
        """)
        (tmp_path / "end").touch()

        assert child["end"] == "running"
        assert child["private_bytes"] > 0

    @needs_native
    def test_budget_around_a_fork_holds_in_the_child(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(
            textwrap.dedent("""
                import os
                from memtools import BudgetExceeded, memory_budget
                @memory_budget("20 MiB")
                def start():
                    if pid := os.fork():
                        return pid
                    try:
                        kept = [bytearray(1 << 20) for _ in range(100)]
                    except BudgetExceeded:
                        os._exit(7)
                    os._exit(0)
                print(os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]))
            """)
        )

        assert run(*MODULE, "program.py")[1] == run("program.py")[1] == "7\n"


class TestPrograms:
    """A Python that the program starts is measured from its start on."""

    STARTS = {  # noqa: RUF012  # read only
        "subprocess": "subprocess.run([sys.executable, *words])",
        "with an environment of its own": "subprocess.run([sys.executable, *words], env={'PATH': os.environ['PATH']})",
        "os.posix_spawn": "os.waitpid(os.posix_spawn(sys.executable, [sys.executable, *words], os.environ), 0)",
        "asyncio": "asyncio.run(start())",
    }

    @needs_native
    @pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
    def test_child_has_its_own_figures_however_it_is_started(self, start: str, run_children: RunChildren) -> None:
        children = run_children(f"""
            import asyncio, os, subprocess, sys
            words = ["-c", "import json, sys; kept = bytearray(25 << 20)"]
            async def start():
                await (await asyncio.create_subprocess_exec(sys.executable, *words)).wait()
            {start}
        """)

        assert [(child["title"], child["end"], round(_live(child))) for child in children] == [("-c", "ended", 25)]

    @pytest.mark.parametrize("path", [None, "", "/nowhere", "/nowhere:/other"])
    def test_child_sees_what_it_sees_alone(self, path: str | None, run: Run, tmp_path: Path) -> None:
        package = str(Path(sys.modules["memtools"].__file__ or "").parent.parent)
        variables = {"PYTHONPATH": package if path is None else f"{package}:{path}"}
        (tmp_path / "look.py").write_text(LOOK)
        (tmp_path / "program.py").write_text(
            "import os, subprocess, sys\n"
            f"given = {path!r}\n"
            "variables = {name: os.environ[name] for name in ('PATH', 'HOME') if name in os.environ}\n"
            "if given is not None:\n    variables['PYTHONPATH'] = given\n"
            "for words in ['look.py', 'a'], ['-m', 'look'], ['-P', 'look.py']:\n"
            "    done = subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True)\n"
            "    print(done.returncode, done.stdout, done.stderr)\n"
        )

        alone, under = run("program.py", **variables), run(*MODULE, "program.py", **variables)

        assert alone[1].count("sys.flags") == 3
        assert under[:2] == alone[:2]

    def test_sitecustomize_of_the_user_is_run_once(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "sitecustomize.py").write_text("print('of the user', __file__)\n")
        (tmp_path / "program.py").write_text(
            "import os, subprocess, sys\nfolders = f\"own:{os.environ.get('PYTHONPATH', '')}\"\n"
            "source = 'import sys; print(sys.modules[\"sitecustomize\"].__file__)'\n"
            "subprocess.run([sys.executable, '-c', source], env={**os.environ, 'PYTHONPATH': folders})\n"
        )

        alone, under = run("program.py"), run(*MODULE, "program.py")

        assert under[:2] == alone[:2]
        assert under[1].count("of the user") == 1

    def test_child_meets_its_own_modules_of_any_name(self, run: Run, tmp_path: Path) -> None:
        names = ["asyncio", "json", "queue", "selectors", "tempfile", "psutil", "wrapt"]
        (tmp_path / "inner").mkdir()
        for name in names:
            (tmp_path / "inner" / f"{name}.py").write_text("OWN = True\n")
        source = f"for name in {names}:\n    print(name, getattr(__import__(name), 'OWN', None))\n"
        (tmp_path / "inner" / "child.py").write_text(source)
        (tmp_path / "program.py").write_text(
            "import subprocess, sys\nsubprocess.run([sys.executable, 'inner/child.py'])\n"
            "subprocess.run([sys.executable, '-m', 'child'], cwd='inner')\n"
        )

        code, out, err = run(*MODULE, "program.py")

        assert (code, out) == (0, "".join(f"{name} True\n" for name in names) * 2)
        assert "child.py, process" in err

    def test_only_this_python_is_told_anything(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(
            "import subprocess, os\nos.putenv('SET_BEHIND', 'its back')\nsubprocess.run(['env'])\n"
        )

        alone, under = run("program.py"), run(*MODULE, "program.py")

        assert "SET_BEHIND" in alone[1]
        assert sorted(under[1].splitlines()) == sorted(alone[1].splitlines())

    def test_what_was_not_looked_at_is_named_without_arguments(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(
            "import os, subprocess, sys\n"
            "for _ in range(3):\n    subprocess.run(['true', '--password=secret'])\n"
            "subprocess.run([sys.executable, '-I', '-c', 'secret = 1'])\n"
            "try:\n    subprocess.run(['no-such-program'])\nexcept FileNotFoundError:\n    print('no such')\n"
        )

        code, out, err = run(*MODULE, "program.py")

        name = os.path.basename(sys.executable)
        assert (code, out) == (0, "no such\n")
        assert (
            f"! 4 child processes were not looked at, and their memory is in no figure: true (3 times), {name} -c"
            in err
        )
        assert "secret" not in err

    def test_signal_handler_of_the_program_is_not_swallowed(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(
            textwrap.dedent("""
                import signal, subprocess
                class Rang(Exception): pass
                def ring(number, frame):
                    raise Rang
                signal.signal(signal.SIGALRM, ring)
                count = 0
                for _ in range(40):
                    signal.setitimer(signal.ITIMER_REAL, 0.0004)
                    try:
                        subprocess.run(["true"])
                        signal.pause()
                    except Rang:
                        count += 1
                print(count)
            """)
        )

        code, out, err = run(*MODULE, "program.py")

        assert (code, out) == (0, "40\n"), err
        assert "Exception ignored" not in err


class TestMultiprocessing:
    """Processes of `multiprocessing` are followed, those of a pool too, which are killed at its end."""

    @needs_native
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_workers_of_a_pool_have_their_figures(self, method: str, run_children: RunChildren) -> None:
        source = METHODS + (
            "    with multiprocessing.Pool(2, begin, [multiprocessing.Barrier(2)]) as pool:\n"
            "        pool.map(keep_each, [20, 20], chunksize=1)\n"
        )

        children = [child for child in run_children(source, method) if "Worker" in child["title"]]

        assert [child["end"] in ("killed", "ended") for child in children] == [True, True]
        assert [_live(child) for child in children] == pytest.approx(
            [20, 20], abs=4
        )  # with what the worker itself imports

    @needs_native
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_process_has_its_figures(self, method: str, run_children: RunChildren) -> None:
        source = METHODS + (
            "    process = multiprocessing.Process(target=keep, args=(30,), name='reader')\n"
            "    process.start()\n    process.join()\n    sys.exit(process.exitcode)\n"
        )

        (child,) = [child for child in run_children(source, method) if child["title"] == "reader"]

        assert child["end"] == "ended"
        assert _live(child) == pytest.approx(30, abs=4)

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_pool_and_its_threads_are_as_alone(self, method: str, run: Run, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(
            textwrap.dedent("""
                import multiprocessing, signal, sys, threading, warnings
                def look(_):
                    return threading.active_count(), str(signal.getsignal(signal.SIGTERM)), len(warnings.filters)
                if __name__ == "__main__":
                    multiprocessing.set_start_method(sys.argv[1])
                    with multiprocessing.Pool(1) as pool:
                        print(pool.map(look, range(3)))
                    print(multiprocessing.active_children(), threading.active_count())
            """)
        )

        alone, under = run("program.py", method), run(*MODULE, "program.py", method)

        assert under[:2] == alone[:2]

    def test_executor_ends_its_workers_by_themselves(self, run_children: RunChildren) -> None:
        children = run_children("""
            from concurrent.futures import ProcessPoolExecutor
            if __name__ == "__main__":
                with ProcessPoolExecutor(2) as executor:
                    list(executor.map(abs, range(10)))
        """)

        assert {child["end"] for child in children if child["title"] != "multiprocessing forkserver"} == {"ended"}


class TestReport:
    """What is printed, and when."""

    FORK = "import os\nif not os.fork():\n    kept = bytearray(10 << 20)\n    os._exit(0)\nos.wait()\n"

    def test_report_of_each_and_one_table_come_last(self, run: Run) -> None:
        code, out, err = run(*MODULE, "-c", self.FORK * 2)

        assert (code, out) == (0, "")
        assert err.count(REPORT) == 3
        last = err.rpartition("\nchild processes ")[2].splitlines()
        assert last[0].split() == ["pid", "peak", "MiB", "resident", "private", "growth", "live", "end"]
        assert all(re.match(r"-c \(fork\) +\d+( +\d+\.\d\d){5}  ended$", line) for line in last[1:3])

    def test_page_has_the_children(self, run: Run, tmp_path: Path) -> None:
        run(*MODULE, "--html", "page.html", "-c", self.FORK)

        page = (tmp_path / "page.html").read_text()
        assert "child processes" in page
        assert len(re.findall(r"<details><summary>-c \(fork\), process \d+</summary><table", page)) == 1

    def test_program_without_children_has_no_table(self, run: Run) -> None:
        _, out, err = run(*MODULE, "--json", "-", "-c", "pass")

        assert "children" not in json.loads(out)
        assert "child" not in err

    @pytest.mark.parametrize("source", [
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)",
        FORK,
    ], ids=["ended", "alive", "forked"])  # fmt: skip
    def test_children_can_be_left_alone(self, source: str, run: Run) -> None:
        code, out, err = run(*MODULE, "--no-children", "--json", "-", "-c", source)

        assert code == 0
        assert "! child processes were started, and their memory is not in these figures" in err
        assert err.count(REPORT) == 1
        assert "child processes" in json.loads(out)["caveats"][0]

    def test_child_that_no_hook_sees_is_told_of(self, run: Run) -> None:
        _, _, err = run(*MODULE, "-c", "import os\nos.system('true')")

        assert "! child processes were started" in err

    def test_many_children_have_one_table(self, run: Run) -> None:
        _, _, err = run(*MODULE, "-c", "import os\nfor _ in range(60):\n    os.fork() or os._exit(0)\n    os.wait()")

        assert err.count(REPORT) == 1 + 8
        assert "52 more reports of child processes" in err
        assert "\nand 20 more\n" in err

    def test_folder_of_a_run_that_was_killed_is_removed(self, run: Run, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, *MODULE, "-c", "import time; print(1, flush=True); time.sleep(60)"], cwd=tmp_path,
            stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        ) as killed:  # fmt: skip
            assert killed.stdout is not None
            killed.stdout.readline()
            killed.kill()
        left = list((tmp_path / "tmp").iterdir())

        run(*MODULE, "-c", "pass")

        assert [path.name.startswith(f"memtools-run-{killed.pid}-") for path in left] == [True]
        assert list((tmp_path / "tmp").iterdir()) == []

    def test_run_without_temporary_files_says_so_and_goes_on(self, run: Run, tmp_path: Path) -> None:
        nowhere = str(tmp_path / "missing")
        hide = "import tempfile\ntempfile._candidate_tempdir_list = lambda: []\n"
        (tmp_path / "sitecustomize.py").write_text(hide)
        path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"

        code, out, err = run(*MODULE, "-c", "print(1)", TMPDIR=nowhere, PYTHONPATH=path)

        assert (code, out) == (0, "1\n")
        assert "memtools: no reports of child processes: FileNotFoundError" in err
        assert REPORT in err


@pytest.mark.once
@needs_native
def test_leak_of_a_worker_is_named_with_its_holder(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        textwrap.dedent("""
            import time
            from gunicorn.app.base import BaseApplication
            kept = []
            def application(environ, start_response):
                kept.append(bytearray(200_000))
                start_response("200 OK", [])
                return [b""]
            class Service(BaseApplication):
                def load_config(self):
                    self.cfg.set("bind", "unix:socket")
                    self.cfg.set("workers", 2)
                    self.cfg.set("accesslog", None)
                def load(self):
                    return application
            Service().run()
        """)
    )
    with subprocess.Popen(
        [sys.executable, *MODULE, "--leaks", "--json", "report.json", "service.py"], cwd=tmp_path,
        stderr=subprocess.PIPE, text=True,
    ) as service:  # fmt: skip
        _load(tmp_path / "socket", seconds=12)
        service.send_signal(signal.SIGTERM)
        assert service.stderr is not None
        err = service.stderr.read()

    report = json.loads((tmp_path / "report.json").read_text())
    assert [child["end"] for child in report["children"]] == ["ended", "ended"]
    leaks = [child["leaks"]["leaks"] for child in report["children"]]
    assert any(found and "kept" in found[0]["holders"][-1] for found in leaks), err
    assert re.search(r"^child processes .* leaks +end$", err, re.MULTILINE)
    assert "  LEAK" in err


def _load(path: Path, *, seconds: float) -> None:
    import http.client
    import socket

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("localhost", timeout=5)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
        time.sleep(0.01)


def test_temporary_folder_is_for_this_user_only(run: Run) -> None:
    source = "import glob, os, tempfile\nfor path in glob.glob(tempfile.gettempdir() + '/memtools-run-*'):\n"
    source += "    print(oct(os.stat(path).st_mode), {oct(os.stat(f'{path}/{n}').st_mode) for n in os.listdir(path)})"

    _, out, _ = run(*MODULE, "-c", source)

    assert tempfile.gettempdir()
    assert out == "0o40700 {'0o100600'}\n"
