"""The command line itself: what it takes, what it refuses, where the report goes, and what `info` knows."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import memtools
from memtools.ledger import native_reason

TIMEOUT_S = 90
DEFAULT = "tracemalloc" if native_reason() else "native"
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "index_stdlib.py"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `python -m memtools` in an empty folder."""

    def command(
        *words: str, env: dict[str, str] | None = None, **options: object
    ) -> "subprocess.CompletedProcess[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.run(  # type: ignore[call-overload, no-any-return]  # the pipes are the test's business
            [sys.executable, "-m", "memtools", *words],
            cwd=tmp_path, env={**os.environ, **(env or {})}, text=True, timeout=TIMEOUT_S, check=False, **pipes,
        )  # fmt: skip

    return command


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that shows its arguments."""
    path = tmp_path / "program.py"
    path.write_text("import sys; print(sys.argv[1:])")
    return path


# Two are enough for a second Python.
WORDS = [["--json", "x"], ["--", "-x"]]
MORE_WORDS = [
    ["-m", "y"], ["--meter", "nonsense"], ["--help"], ["--version"], ["a", "--", "b"], ["-mfoo"], ["--js"], ["run"],
    [""],
]  # fmt: skip


@pytest.mark.parametrize("words", [*WORDS, *(pytest.param(words, marks=pytest.mark.once) for words in MORE_WORDS)])
def test_options_after_the_script_belong_to_the_script(words: list[str], program: Path, run: Run) -> None:
    by_path = run("run", str(program), *words)
    after_options = run("run", "--meter", "rss", str(program), *words)
    by_name = run("run", "-m", "program", *words)
    attached = run("run", "-mprogram", *words)

    assert [done.stdout for done in (by_path, after_options, by_name, attached)] == [f"{words}\n"] * 4
    assert by_path.returncode == 0


@pytest.mark.parametrize(("words", "message"), [
    (["run"], "a script, -m MODULE, -c CODE or -"),
    (["run", "--meter", "precise", "program.py"], "meter='precise' is not accepted"),
    (["run", "--json", "nowhere/x.json", "program.py"], "cannot write nowhere/x.json"),
    (["run", "--html", ".", "program.py"], "--html: . is a folder"),
    (["run", "-m"], "-m needs the name of a module"),
    (["run", "--frobnicate", "program.py"], "--frobnicate"),
    (["walk"], "unknown command 'walk'"),
])  # fmt: skip
def test_wrong_options_are_refused_before_anything_runs(
    words: list[str], message: str, program: Path, run: Run
) -> None:
    done = run(*words)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_missing_command_lists_the_commands(run: Run) -> None:
    done = run()

    assert done.returncode == 2
    assert "run" in done.stdout
    assert "info" in done.stdout


def test_files_are_written_where_asked_after_a_chdir(tmp_path: Path, run: Run) -> None:
    (tmp_path / "program.py").write_text("import os\nos.chdir('/')\nblock = bytes(2 * 2**20)")

    done = run("run", "--json", "report.json", "--html", "report.html", "program.py")

    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0
    assert (report["title"], report["meters"]) == ("program.py", [DEFAULT])
    assert report["scopes"][0]["retained_bytes"] >= 2 * 2**20
    assert report["process"]["resident_growth_bytes"] is not None
    assert "program.py" in (tmp_path / "report.html").read_text()


def test_report_follows_all_output_of_the_program(tmp_path: Path, run: Run) -> None:
    (tmp_path / "program.py").write_text(
        "import atexit, sys, threading, time\n"
        "atexit.register(lambda: print('atexit'))\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "print('main')\n"
    )

    done = run("run", "program.py", stderr=subprocess.STDOUT)

    before, _, report = done.stdout.partition("\nmemtools: ")
    assert before.split() == ["main", "thread", "atexit"]
    assert report.startswith("program.py")


@pytest.mark.parametrize("ending", ["", "import sys; sys.exit(3)", "raise ValueError"])
@pytest.mark.parametrize(
    "harm", ["import sys; sys.stderr.close()", "import os; os.close(2)", "import sys; sys.stderr = None"]
)
def test_unusable_stderr_does_not_change_the_exit_code(harm: str, ending: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "program.py").write_text(f"{harm}\n{ending}\n")
    alone = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, timeout=TIMEOUT_S, stderr=subprocess.DEVNULL, check=False
    )

    done = run("run", "program.py")

    assert done.returncode == alone.returncode


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of this kind are POSIX's")
def test_unread_stderr_does_not_change_the_exit_code(program: Path, run: Run) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = run("run", str(program), stderr=write)
    finally:
        os.close(write)

    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_failing_report_is_reported_and_changes_nothing(tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "program.py").write_text("import shutil, sys\nshutil.rmtree('out')\nsys.exit(4)")

    done = run("run", "--json", "out/report.json", "program.py")

    assert done.returncode == 4
    assert "no report" in done.stderr
    assert "program.py, peak" in done.stderr


def test_report_to_an_ascii_stream_is_ascii(program: Path, run: Run) -> None:
    done = run("run", str(program), env={"PYTHONIOENCODING": "ascii", "COLUMNS": "80"})

    assert done.stderr.isascii()
    assert "100% ########" in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80


def test_output_never_uses_colour(program: Path, run: Run) -> None:
    done = run("run", str(program), env={"NO_COLOR": "1", "FORCE_COLOR": "1"})

    assert "\x1b" not in done.stderr


def test_limit_is_shown_with_its_source(run: Run) -> None:
    done = run("info", "--json", env={"MEMTOOLS_LIMIT": "64 MiB"})

    facts = json.loads(done.stdout)
    assert (facts["limit"]["limit_bytes"], facts["limit"]["source"]) == (64 * 2**20, "MEMTOOLS_LIMIT")
    assert facts["limit"]["headroom_bytes"] < 64 * 2**20
    assert facts["environment"]["MEMTOOLS_LIMIT"] == "64 MiB"


def test_info_names_versions_meters_and_interpreter_state(run: Run) -> None:
    facts = json.loads(run("info", "--json").stdout)

    assert {"tracemalloc", "rss"} <= set(facts["meters"]["available"])
    assert facts["meters"]["default"] in facts["meters"]["available"]
    assert facts["versions"]["python"].startswith("{}.{}.".format(*sys.version_info))
    assert facts["versions"]["psutil"]
    assert facts["memory"]["resident_bytes"] > 0
    assert facts["interpreter"]["tracemalloc"] == "off"


def test_info_names_the_meter_and_its_reason(run: Run) -> None:
    meters, without = (
        json.loads(run("info", "--json", env=env).stdout)["meters"] for env in ({}, {"MEMTOOLS_NATIVE": "0"})
    )

    assert meters["of memtools run"] == DEFAULT
    assert meters["native"].startswith(native_reason() or "built")
    assert (without["default"], without["of memtools run"], without["native"]) == (
        "rss", "tracemalloc", "MEMTOOLS_NATIVE=0",
    )  # fmt: skip


def test_missing_native_meter_falls_back_to_tracemalloc(program: Path, run: Run) -> None:
    done = run("run", "--json", "report.json", str(program), env={"MEMTOOLS_NATIVE": "0"})

    report = json.loads((program.parent / "report.json").read_text())
    assert (report["meters"], report["scopes"][0]["live_bytes"]) == (["tracemalloc"], None)
    assert "retained" in done.stderr
    assert "live: not shown" in done.stderr


LEAKS = """
import os
import shutil
from memtools import profile_memory
kept = []
@profile_memory
def update_prices(): kept.append(bytes(12 * 1024))
@profile_memory
def render(): return bytes(100_000)
for _ in range(300):
    update_prices(); render()
print(os.environ.get("MEMTOOLS_METER"))
"""


@pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
def test_function_that_retains_most_is_first_with_its_rate(tmp_path: Path, run: Run) -> None:
    (tmp_path / "program.py").write_text(LEAKS)

    done = run("run", "--json", "report.json", "--html", "report.html", "program.py", env={"COLUMNS": "80"})

    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in report["functions"]] == ["update_prices", "render"]
    assert 300 * 12 * 1024 <= report["functions"][0]["live_bytes"] < 300 * 13 * 1024
    assert "`update_prices` leaves 12.0 KiB behind per call; 300 calls, 3.5 MiB live" in done.stderr
    assert [row["name"] for row in report["leftovers"]] == ["update_prices"]
    assert "`update_prices` leaves" in (tmp_path / "report.html").read_text()
    assert done.stdout == "None\n"  # children of another Python may have no native meter
    assert report["process"]["unattributed_bytes"] is not None


def test_info_sees_tracing_and_other_allocators(run: Run) -> None:
    done = run("info", "--json", env={"PYTHONTRACEMALLOC": "3", "PYTHONMALLOC": "malloc"})

    facts = json.loads(done.stdout)
    assert facts["interpreter"]["tracemalloc"] == "tracing, 3 frames"
    assert facts["allocator"]["python"] == "malloc"


@pytest.mark.parametrize("wrong", [{"MEMTOOLS_LIMIT": "64 Mb"}, {"MEMTOOLS_METER": "precise"}])
def test_info_says_what_is_wrong_and_goes_on(wrong: dict[str, str], run: Run) -> None:
    done = run("info", env=wrong)

    assert done.returncode == 0
    assert "is not accepted" in done.stdout
    assert "interpreter" in done.stdout


def test_info_is_readable_text(run: Run) -> None:
    done = run("info")

    assert done.stdout.splitlines()[0] == "versions"
    assert "headroom" in done.stdout
    assert "MiB" in done.stdout


def test_version_option_prints_the_version(run: Run) -> None:
    done = run("--version")

    assert done.stdout.startswith("memtools ")
    assert done.returncode == 0


def test_example_program_reports_per_package(run: Run, tmp_path: Path) -> None:
    assert hasattr(memtools, "task_scope")

    done = run("run", "--json", "report.json", str(EXAMPLE), "--limit", "60")

    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("60 modules")
    # A package that is among the first 60 modules on every Python.
    assert {"__phello__", "single modules"} <= {row["name"] for row in report["tasks"]}
    assert {"read_facts", "parse", "find_cycles"} <= {row["name"] for row in report["functions"]}
    assert {"index", "cross-reference"} <= {row["name"] for row in report["scopes"][0]["children"]}


@pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
def test_info_says_that_all_extensions_are_built(run: Run) -> None:
    facts = json.loads(run("info", "--json").stdout)["C extensions"]

    assert facts == {
        "memtools.ledger._native": "built",
        "memtools.structures._list_core": "built",
        "memtools.commands._interpreter": "built",
    }


@pytest.mark.once
class TestWithoutExtensions:
    """What `info` says where the package has no C extensions, and what to type."""

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """A folder with the Python files of memtools, with a space and an umlaut in its path."""
        folder = tmp_path / "mein Gerät"
        package = Path(memtools.__file__).parent
        shutil.copytree(package, folder / "memtools", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
        return folder

    def facts(self, run: Run, checkout: Path, **env: str) -> dict[str, str]:
        done = run("info", "--json", env={"PYTHONPATH": str(checkout), "PYTHONUTF8": "1", **env})
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)["C extensions"]
        return found

    def test_source_is_to_be_installed(self, run: Run, checkout: Path) -> None:
        facts = self.facts(run, checkout)

        assert facts["memtools.ledger._native"] == "not built"
        assert facts["to build them"].endswith(f"pip install '{checkout}'")

    @pytest.mark.skipif(sys.platform != "linux", reason="the names of packages are those of Linux distributions")
    def test_missing_compiler_is_to_be_installed_first(self, run: Run, checkout: Path, tmp_path: Path) -> None:
        advice = self.facts(run, checkout, PATH=str(tmp_path))["to build them"]

        first, _, then = advice.partition(", then ")
        assert "gcc" in first or "C compiler" in first
        assert then.startswith("pip install ")

    def test_extension_of_another_python_is_named(self, run: Run, checkout: Path) -> None:
        (checkout / "memtools" / "ledger" / "_native.cpython-39-other.so").touch()

        facts = self.facts(run, checkout)

        assert facts["memtools.ledger._native"] == "built for another Python (_native.cpython-39-other.so)"

    def test_recorded_reason_and_origin_are_used(self, run: Run, checkout: Path, tmp_path: Path) -> None:
        metadata = checkout / "memtools-9.9.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: memtools\nVersion: 9.9\n")
        (metadata / "missing_extensions.txt").write_text("memtools.ledger._native: the C compiler 'x' was not found\n")
        origin = {"url": (tmp_path / "a source").as_uri(), "dir_info": {}}

        from_index = self.facts(run, checkout)
        (metadata / "direct_url.json").write_text(json.dumps(origin))
        from_folder = self.facts(run, checkout)

        assert from_index["memtools.ledger._native"] == "not built: the C compiler 'x' was not found"
        again = "pip install --force-reinstall --no-deps --no-cache-dir"
        assert from_index["to build them"].endswith(f"{again} --no-binary memtools memtools")
        assert from_folder["to build them"].endswith(f"{again} '{tmp_path / 'a source'}'")

    @pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")
    def test_installed_package_that_has_them_is_named(self, run: Run, checkout: Path) -> None:
        installed = Path(memtools.__file__).parents[1]

        done = subprocess.run(
            [sys.executable, "-m", "memtools", "info", "--json"],
            cwd=checkout, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

        facts = json.loads(done.stdout)["C extensions"]
        assert facts["hidden installation"].startswith(f"{installed} has them")
        assert "python -P -m memtools" in facts["to use it"]
        assert "to build them" not in facts
