"""Build the C list where there is a compiler; all else is in pyproject.toml.

A file of its own because a table in pyproject.toml cannot ask the environment: `MEMTOOLS_NATIVE=0` leaves it out.
Without a compiler the build goes on without it (`optional`), and bounded lists do in Python what it would do in C.
"""

import os

from setuptools import Extension, setup

window = Extension(
    "memtools.structures._fast_window",
    sources=["memtools/structures/_fast_window.c"],
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"] if os.name == "posix" else [],
    optional=True,
)

setup(ext_modules=[window] if os.environ.get("MEMTOOLS_NATIVE") != "0" else [])
