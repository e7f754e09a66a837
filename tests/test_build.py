"""What the build makes with and without a compiler: the wheel's name and contents, the source archive.

Nothing is fetched: the build back end is the setuptools of this environment, and no test compiles anything.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 120
COPIED = ("memtools", "docs", "tests", ".ci", ".github")


def _version_of_setuptools() -> int:
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not (ROOT / "memtools" / "__init__.py").exists(), reason="the source is not here"),
    pytest.mark.skipif(_version_of_setuptools() < 77, reason="no setuptools 77 or later is installed here"),
]


class Built(NamedTuple):
    """What pip has shown, and the wheel that it has made."""

    pip: "subprocess.CompletedProcess[str]"
    wheel: Path


def _copy_checkout(target: Path) -> Path:
    built = shutil.ignore_patterns("__pycache__", "*.so", "_build", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, target / name, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith(".coverage"):
            shutil.copy(path, target)
    return target


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with a space and an umlaut in its path."""
    return _copy_checkout(tmp_path_factory.mktemp("mein Gerät"))


@pytest.fixture(scope="module")
def without_compiler(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """What pip shows and makes where the compiler does not exist."""
    target = tmp_path_factory.mktemp("without compiler")
    return Built(_pip_wheel(checkout, target, CC="no-such-compiler"), _only_wheel(target))


@pytest.fixture(scope="module")
def plain(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same where no extensions are asked for, and an earlier build has left a module behind."""
    for library in ("lib", f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"):
        leftover = checkout / "build" / library / "memtools" / "removed.py"
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.touch()
    target = tmp_path_factory.mktemp("plain")
    return Built(_pip_wheel(checkout, target, MEMTOOLS_NATIVE="0"), _only_wheel(target))


def _run(command: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MEMTOOLS_", "PIP_", "PYTHON"))}
    return subprocess.run(
        command,
        cwd=folder, env={**clean, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUTF8": "1", **env},
        capture_output=True, text=True, encoding="utf-8", timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def _pip_wheel(checkout: Path, target: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(checkout)]
    return _run([sys.executable, "-m", "pip", *words], checkout, **env)


def _sdist(checkout: Path, target: Path, **env: str) -> Path:
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    done = _run([sys.executable, "-c", code, str(target)], checkout, **env)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def _only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class TestReadme:
    """What PyPI shows, which resolves no relative link."""

    @staticmethod
    def _description(checkout: Path, target: Path, **env: str) -> str:
        words = ["setup.py", "-q", "egg_info", "--egg-base", str(target)]
        done = _run([sys.executable, *words], checkout, MEMTOOLS_NATIVE="0", **env)
        assert done.returncode == 0, done.stderr
        return (target / "memtools.egg-info" / "PKG-INFO").read_text(encoding="utf-8")

    def test_links_of_a_release_are_whole_addresses(self, checkout: Path, tmp_path: Path) -> None:
        text = self._description(
            checkout, tmp_path, GITHUB_SERVER_URL="https://github.com", GITHUB_REPOSITORY="o/memtools",
            GITHUB_REF_NAME="v0.1.0",
        )  # fmt: skip

        assert "](https://github.com/o/memtools/raw/v0.1.0/docs/report-of-a-service.png)" in text
        assert "[The command line](https://github.com/o/memtools/blob/v0.1.0/docs/command-line.md)" in text
        assert not re.search(r"\]\((docs/|[A-Z]+\.md|LICENSE)", text)
        assert "Description-Content-Type: text/markdown" in text

    def test_links_of_another_build_stay_as_they_are(self, checkout: Path, tmp_path: Path) -> None:
        text = self._description(checkout, tmp_path, GITHUB_REPOSITORY="")

        assert "](docs/report-of-a-service.png)" in text

    def test_picture_of_the_readme_is_there_and_small(self) -> None:
        paths = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))

        assert paths == ["docs/report-of-a-service.png"]
        assert (ROOT / paths[0]).stat().st_size <= 60 * 1024


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled on Windows")
class TestWithoutCompiler:
    """The build where the C compiler is missing or fails."""

    def test_pip_shows_that_extensions_are_missing(self, without_compiler: Built) -> None:
        shown = without_compiler.pip.stdout

        assert re.search(r"filename=memtools-[\d.]+-0_without_C_extensions-py3-none-any\.whl", shown), shown

    def test_wheel_says_why_each_extension_is_missing(self, without_compiler: Built) -> None:
        contents = _contents(without_compiler.wheel)

        (reasons,) = (text.decode() for name, text in contents.items() if name.endswith("missing_extensions.txt"))
        assert "memtools.ledger._native: the C compiler 'no-such-compiler' was not found\n" in reasons
        assert reasons.count("\n") == 3

    def test_failing_compiler_is_named(self, checkout: Path, tmp_path: Path) -> None:
        _pip_wheel(checkout, tmp_path, CC="false")

        contents = _contents(_only_wheel(tmp_path))

        (reasons,) = (text.decode() for name, text in contents.items() if name.endswith("missing_extensions.txt"))
        assert "memtools.ledger._native: the C compiler 'false' failed\n" in reasons

    def test_build_explains_it_where_pip_is_verbose(self, checkout: Path, tmp_path: Path) -> None:
        code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

        done = _run([sys.executable, "-c", code, str(tmp_path)], checkout, CC="no-such-compiler")

        assert "memtools is built WITHOUT memtools.ledger._native" in done.stdout + done.stderr
        assert "python -m memtools info" in done.stdout + done.stderr

    def test_strict_build_fails(self, checkout: Path, tmp_path: Path) -> None:
        done = _pip_wheel(checkout, tmp_path, CC="no-such-compiler", MEMTOOLS_WERROR="1")

        assert done.returncode != 0
        assert not list(tmp_path.glob("*.whl"))

    def test_installed_package_works_and_says_what_to_do(self, without_compiler: Built, tmp_path: Path) -> None:
        target = tmp_path / "installed"
        words = ["install", "--no-index", "--no-deps", "--target", str(target), str(without_compiler.wheel)]
        _run([sys.executable, "-m", "pip", *words], tmp_path)

        code = "import sys; from memtools.commands._main import main; sys.exit(main(['info']))"
        done = _run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(target))

        assert "not built: the C compiler 'no-such-compiler' was not found" in done.stdout, done.stderr
        assert "pip install --force-reinstall --no-deps --no-cache-dir" in done.stdout

    def test_editable_installation_shows_it_too(self, checkout: Path, tmp_path: Path) -> None:
        code = "import sys; from setuptools import build_meta; print(build_meta.build_editable(sys.argv[1]))"

        done = _run([sys.executable, "-c", code, str(tmp_path)], checkout, CC="no-such-compiler")

        assert done.returncode == 0, done.stderr
        assert "0.editable_without_C_extensions" in _only_wheel(tmp_path).name


class TestWheel:
    """What is in a wheel, and what is not."""

    def test_wheel_that_was_asked_for_without_them_is_plain(self, plain: Built) -> None:
        assert re.fullmatch(r"memtools-[\d.]+-py3-none-any\.whl", plain.wheel.name), plain.pip.stderr
        assert not [name for name in _contents(plain.wheel) if "missing_extensions" in name]

    def test_wheel_holds_the_package_and_nothing_else(self, checkout: Path, plain: Built) -> None:
        names = [Path(name) for name in _contents(plain.wheel)]

        top = {path.parts[0] for path in names if not path.parts[0].endswith(".dist-info")}
        assert top == {"memtools", "pytest_memtools.py"}
        assert {path.suffix for path in names} == {".py", ".pyi", ".typed", ".txt", ""}
        sources = {path.relative_to(checkout) for path in (checkout / "memtools").rglob("*.py*")}
        assert {path for path in names if path.parts[0] == "memtools" and path.suffix != ".typed"} == sources

    def test_leftovers_of_earlier_builds_stay_out(self, plain: Built) -> None:
        assert "memtools/removed.py" not in _contents(plain.wheel)


class TestSourceArchive:
    """The sdist: enough to build and to test, and the same bytes each time."""

    def test_archive_holds_what_builds_and_tests_need(self, checkout: Path, tmp_path: Path) -> None:
        with tarfile.open(_sdist(checkout, tmp_path)) as archive:
            held = {path.split("/", 1)[1] for path in archive.getnames() if "/" in path}

        wanted = {
            path.relative_to(checkout).as_posix()
            for path in checkout.rglob("*")
            if path.is_file() and path.relative_to(checkout).parts[0] in (*COPIED, "conftest.py", "CHANGELOG.md")
        }
        wanted = {name for name in wanted if "__pycache__" not in name and not name.endswith(".so")}
        assert wanted - held == set()
        assert not {name for name in held if name.endswith((".so", ".pyc")) or name.startswith("build/")}

    def test_same_files_give_the_same_bytes(self, tmp_path: Path) -> None:
        archives = []
        for number, name in enumerate(("one", "another")):
            copy = _copy_checkout(tmp_path / name)
            os.utime(copy / "README.md", (number + 1e9, number + 1e9))
            archives.append(_sdist(copy, tmp_path / f"{name}.out", SOURCE_DATE_EPOCH="1700000000"))

        assert archives[0].read_bytes() == archives[1].read_bytes()

    def test_wheel_from_the_archive_equals_that_of_the_checkout(
        self, checkout: Path, plain: Built, tmp_path: Path
    ) -> None:
        with tarfile.open(_sdist(checkout, tmp_path)) as opened:
            # 3.11.4 was the first with filters, and 3.12 warns where there is none.
            opened.extractall(tmp_path / "source", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        (source,) = (tmp_path / "source").iterdir()

        _pip_wheel(source, tmp_path, MEMTOOLS_NATIVE="0")

        assert _contents(_only_wheel(tmp_path)) == _contents(plain.wheel)


def test_older_setuptools_is_refused_with_the_command_to_type(checkout: Path) -> None:
    code = "import setuptools; setuptools.__version__ = '65.5.0'; exec(open('setup.py', encoding='utf-8').read())"

    done = _run([sys.executable, "-c", code], checkout)

    assert done.returncode == 1
    assert done.stderr.startswith("memtools is built by setuptools 77 or later, and this is 65.5.0: pip install")


def test_required_setuptools_is_stated_in_one_version(checkout: Path) -> None:
    required = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    oldest = re.search(r"^OLDEST_SETUPTOOLS = (\d+)", (checkout / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)

    assert oldest is not None
    assert required == [f"setuptools>={oldest[1]}"]
