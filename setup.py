"""Build the native ledger where there is a compiler; all else is in pyproject.toml.

A file of its own because a table in pyproject.toml cannot ask the environment: `MEMTOOLS_NATIVE=0` leaves it out.
Without a compiler the build goes on without it (`optional`), and memtools counts by the other meters.
"""

import os
from glob import glob

from setuptools import Extension, setup

FOLDER = "memtools/ledger/native"

native = Extension(
    "memtools.ledger._native",
    sources=sorted(glob(f"{FOLDER}/*.c")),
    depends=sorted(glob(f"{FOLDER}/*.h")),
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"] if os.name == "posix" else [],
    optional=True,
)

setup(ext_modules=[native] if os.environ.get("MEMTOOLS_NATIVE") != "0" else [])
