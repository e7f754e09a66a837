"""Build the C extensions where there is a compiler, and read the README; everything else is in pyproject.toml.

Both depend on environment variables, which a table in pyproject.toml cannot read:

- `MEMTOOLS_NATIVE=0` leaves the extensions out. `MEMTOOLS_NATIVE=1` insists on them: a failed compilation fails the
  build. It also tries to build them on Windows, where none has ever been run.
- `MEMTOOLS_WERROR=1` insists on them, too, and turns warnings into errors, for CI.
- `MEMTOOLS_SANITIZE=address,undefined` builds with these sanitizers of GCC or Clang, for tests.

By default a failed compilation leads to a package without the extensions: memtools then uses its other
meters, and bounded lists run in Python. Without `-v` pip hides what a successful build writes, but shows the name
of the wheel. So the name says what is missing (`0_without_C_extensions-py3-none-any`), and `missing_extensions.txt`
beside the metadata says why, for `memtools info`.
"""

import atexit
import gzip
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import tempfile
from glob import glob
from pathlib import Path
from typing import cast

import setuptools

OLDEST_SETUPTOOLS = 77  # the first that accepts `license = "MIT"`; also in pyproject.toml, which pip alone obeys
if int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
    sys.exit(
        f"memtools is built by setuptools {OLDEST_SETUPTOOLS} or later, and this is {setuptools.__version__}: "
        f"pip install --upgrade 'setuptools>={OLDEST_SETUPTOOLS}', or install memtools without --no-build-isolation"
    )

# Only now: an older setuptools has no such modules.
from setuptools import Distribution, Extension, setup  # noqa: E402
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402
from setuptools.command.build import build  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402
from setuptools.command.editable_wheel import editable_wheel  # noqa: E402
from setuptools.command.sdist import sdist  # noqa: E402
from setuptools.errors import BaseError, CCompilerError  # noqa: E402

LEDGER = "memtools/ledger/native"
HAS_STRICT_COMPILER = os.environ.get("MEMTOOLS_WERROR") == "1"
IS_REQUIRED = os.environ.get("MEMTOOLS_NATIVE") == "1" or HAS_STRICT_COMPILER
IS_WANTED = os.environ.get("MEMTOOLS_NATIVE") != "0" and (os.name == "posix" or IS_REQUIRED)
SANITIZERS = os.environ.get("MEMTOOLS_SANITIZE", "")
MISSING_FILE = "missing_extensions.txt"

compile_flags: list[str] = []
link_flags: list[str] = []
if os.name == "posix":
    compile_flags += ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"]
    compile_flags += [f"-ffile-prefix-map={os.getcwd()}=."]  # the debug information of two builds is the same
if HAS_STRICT_COMPILER:
    compile_flags += ["-Werror"]
if SANITIZERS:
    compile_flags += [f"-fsanitize={SANITIZERS}", "-fno-omit-frame-pointer", "-g", "-O1"]
    link_flags += [f"-fsanitize={SANITIZERS}"]
elif sys.platform == "linux":
    # Without what only a debugger reads, two thirds of the ledger. The names stay, for profiles and crash reports.
    link_flags += ["-Wl,--strip-debug"]


class Build(build):
    """Begins with an empty folder: what an earlier build has left there would get into the wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildExtensions(build_ext):
    """Builds what can be built; what cannot is left out, with the reason, unless the build insists on it."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError) as error:
            if IS_REQUIRED:
                raise
            self.warn(f"{ext.name} was not built: {error}")
            missing(self.distribution)[ext.name] = self._reason(error)

    def build_extensions(self) -> None:
        super().build_extensions()
        left_out = missing(self.distribution)
        if not left_out:
            return
        # From here on there are no such extensions: the wheel is a pure one if none was built.
        built = [one for one in self.extensions if one.name not in left_out]
        self.extensions = self.distribution.ext_modules = built
        self.warn(
            f"memtools is built WITHOUT {', '.join(left_out)}: {next(iter(left_out.values()))}. The package works, "
            "with less exact meters. `python -m memtools info` says what to install and how to build again"
        )

    def _reason(self, error: Exception) -> str:
        if os.name != "posix":
            return " ".join(str(error).split())
        command = self.compiler.compiler[0]
        header = Path(sysconfig.get_path("include"), "Python.h")
        if shutil.which(command) is None:
            return f"the C compiler {command!r} was not found"
        if not header.exists():
            return f"Python's headers are not installed (there is no {header})"
        return f"the C compiler {command!r} failed"


class BuildWheel(bdist_wheel):
    """Names the wheel after what is in it, which is known when the extensions have been compiled, or not."""

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        self.root_is_pure = not self.distribution.has_ext_modules()
        if missing(self.distribution):
            self.build_number = f"0_{without(self.distribution)}"
        super().run()

    def write_wheelfile(self, wheelfile_base: str, *generator: str) -> None:
        super().write_wheelfile(wheelfile_base, *generator)
        left_out = missing(self.distribution)
        if left_out:
            lines = "".join(f"{name}: {reason}\n" for name, reason in left_out.items())
            Path(wheelfile_base, MISSING_FILE).write_text(lines, encoding="utf-8")


class BuildEditable(editable_wheel):
    """Names the wheel of an editable installation after what is missing, too."""

    def run(self) -> None:
        for one in self.distribution.ext_modules or ():
            folder = os.path.abspath(os.path.join(*one.name.split(".")[:-1]))
            if not os.access(folder, os.W_OK):
                sys.exit(
                    f"an editable installation compiles into the checkout, and {folder} is not writable: "
                    "install without --editable, or make a copy that you own and install that"
                )
        super().run()
        if missing(self.distribution):
            name = f"-0.editable_{without(self.distribution)}-"
            for path in Path(self.dist_dir).glob("*-0.editable-*.whl"):
                path.rename(path.with_name(path.name.replace("-0.editable-", name)))


class SourceArchive(sdist):
    """Gives the same bytes for the same files where `SOURCE_DATE_EPOCH` says which time to write."""

    def make_archive(
        self,
        base_name: str,
        format: str,  # noqa: A002  # the name that setuptools gives it
        root_dir: str | os.PathLike[str] | None = None,
        base_dir: str | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> str:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar" or root_dir is not None or base_dir is None:
            return cast("str", super().make_archive(base_name, format, root_dir, base_dir, owner, group))

        def same_everywhere(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = int(epoch), 0, 0, "", ""
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            return member

        path = f"{base_name}.tar.gz"
        with (
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=int(epoch)) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(base_dir, filter=same_everywhere)
        return path


def missing(distribution: Distribution) -> dict[str, str]:
    """Return why each extension is missing that could not be built."""
    return cast("dict[str, str]", distribution.__dict__.setdefault("_missing_extensions", {}))


def without(distribution: Distribution) -> str:
    """Return what is missing as a part of a file name."""
    return "without_some_C_extensions" if distribution.has_ext_modules() else "without_C_extensions"


def extension(name: str, sources: list[str], headers: list[str]) -> Extension:
    """Return an extension with the flags above."""
    return Extension(
        name, sources=sources, depends=headers, extra_compile_args=compile_flags, extra_link_args=link_flags
    )


def folders_to_build_in() -> dict[str, dict[str, str]]:
    """Return options that lead the build out of a checkout that the user may not write, else none."""
    written = [Path.cwd(), *(path for path in (Path("build"), Path("memtools.egg-info")) if path.exists())]
    if all(os.access(path, os.W_OK) for path in written):
        return {}
    folder = tempfile.mkdtemp(prefix="memtools-build-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"build": {"build_base": os.path.join(folder, "build")}, "egg_info": {"egg_base": folder}}


def read_readme() -> str:
    """Return the README; in a release on GitHub its links are whole addresses, without which PyPI shows no picture."""
    text = Path("README.md").read_text(encoding="utf-8")
    server, repository, ref = (
        os.environ.get(f"GITHUB_{name}", "") for name in ("SERVER_URL", "REPOSITORY", "REF_NAME")
    )
    if not (server and repository and ref):
        return text

    def absolute(link: "re.Match[str]") -> str:
        is_picture, label, path = link.groups()
        return f"{is_picture}[{label}]({server}/{repository}/{'raw' if is_picture else 'blob'}/{ref}/{path})"

    return re.sub(r"(!?)\[([^\[\]]*)\]\((?![a-z]+:|#)([^()\s]+)\)", absolute, text)


# The folder of the ledger must not be an include directory: it has a `limits.h`, like the C library.
ledger = extension("memtools.ledger._native", sorted(glob(f"{LEDGER}/*.c")), sorted(glob(f"{LEDGER}/*.h")))
window = extension("memtools.structures._list_core", ["memtools/structures/_list_core.c"], [])
interpreter = extension("memtools.commands._interpreter", ["memtools/commands/_interpreter.c"], [])

setup(
    ext_modules=[ledger, window, interpreter] if IS_WANTED else [],
    cmdclass={
        "bdist_wheel": BuildWheel,
        "build": Build,
        "build_ext": BuildExtensions,
        "editable_wheel": BuildEditable,
        "sdist": SourceArchive,
    },
    options=folders_to_build_in(),
    long_description=read_readme(),
    long_description_content_type="text/markdown",
)
