"""Build the C extensions where there is a compiler; everything else is in pyproject.toml.

The build of the extensions depends on environment variables, which a table in pyproject.toml cannot read:

- `MEMTOOLS_NATIVE=0` leaves the extensions out.
- `MEMTOOLS_WERROR=1` turns warnings into errors and makes a failed compilation fail the build, for CI.
- `MEMTOOLS_SANITIZE=address,undefined` builds with these sanitizers of GCC or Clang, for tests.

Without `MEMTOOLS_WERROR=1` a failed compilation is reported and the package is built without the extensions: memtools then
uses its other meters, and bounded lists run in Python.
"""

import os
from glob import glob

from setuptools import Extension, setup

LEDGER = "memtools/ledger/native"
IS_STRICT = os.environ.get("MEMTOOLS_WERROR") == "1"
SANITIZERS = os.environ.get("MEMTOOLS_SANITIZE", "")

compile_flags: list[str] = []
link_flags: list[str] = []
if os.name == "posix":
    compile_flags += ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"]
if IS_STRICT:
    compile_flags += ["-Werror"]
if SANITIZERS:
    compile_flags += [f"-fsanitize={SANITIZERS}", "-fno-omit-frame-pointer", "-g", "-O1"]
    link_flags += [f"-fsanitize={SANITIZERS}"]


def extension(name: str, sources: list[str], headers: list[str]) -> Extension:
    return Extension(
        name,
        sources=sources,
        depends=headers,
        extra_compile_args=compile_flags,
        extra_link_args=link_flags,
        optional=not IS_STRICT,
    )


# The folder of the ledger must not be an include directory: it has a `limits.h`, like the C library.
ledger = extension("memtools.ledger._native", sorted(glob(f"{LEDGER}/*.c")), sorted(glob(f"{LEDGER}/*.h")))
window = extension("memtools.structures._fast_window", ["memtools/structures/_fast_window.c"], [])

setup(ext_modules=[ledger, window] if os.environ.get("MEMTOOLS_NATIVE") != "0" else [])
