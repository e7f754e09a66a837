"""Build what is written in C where there is a compiler; all else is in pyproject.toml.

A file of its own because a table in pyproject.toml cannot ask the environment: `MEMTOOLS_NATIVE=0` leaves it out.
Without a compiler the build goes on without it (`optional`): memtools counts by the other meters, and bounded lists do
in Python what they would do in C.
"""

import os
from glob import glob

from setuptools import Extension, setup

FLAGS = ["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"] if os.name == "posix" else []
LEDGER = "memtools/ledger/native"

ledger = Extension(
    "memtools.ledger._native",
    sources=sorted(glob(f"{LEDGER}/*.c")),
    depends=sorted(glob(f"{LEDGER}/*.h")),
    extra_compile_args=FLAGS,
    optional=True,
)
window = Extension(
    "memtools.structures._fast_window",
    sources=["memtools/structures/_fast_window.c"],
    extra_compile_args=FLAGS,
    optional=True,
)

setup(ext_modules=[ledger, window] if os.environ.get("MEMTOOLS_NATIVE") != "0" else [])
