"""The native meter declines with a reason where it cannot count right, and another meter is used."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from memtools.ledger import native_reason

pytestmark = [
    pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler to make a bad allocator with"),
    pytest.mark.skipif(
        not Path(sysconfig.get_path("include"), "Python.h").exists(), reason="Python's headers are not installed"
    ),
]

SOURCES = Path(__file__).parents[2] / "memtools" / "ledger" / "native"


BEGIN = """
import ctypes, sys
ctypes.PyDLL(sys.argv[1]).misalign()
from memtools.commands._main import main
sys.exit(main(["info"]))
"""

ASKS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("memtools.ledger._native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.install(), module.reason())
"""


def build(target: Path, *arguments: str) -> None:
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(["cc", "-shared", "-fPIC", include, *arguments, "-o", str(target)], check=True, timeout=120)


def python(program: str, argument: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(argument)],
        capture_output=True, text=True, timeout=120, check=False, cwd=tempfile.gettempdir(), env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["misaligned_allocator.c", "unaligned_small_blocks.c"])
def test_failed_self_check_is_shown_and_changes_the_default(tmp_path: Path, program: str) -> None:
    library = tmp_path / "allocator.so"
    build(library, str(Path(__file__).with_name("programs") / program))

    facts = dict(line.split(maxsplit=1) for line in python(BEGIN, library).splitlines() if " " in line.strip())

    assert "blocks are not aligned to 16 bytes" in facts["native"]
    assert facts["default"] == "rss"


@pytest.mark.skipif(not any(SOURCES.glob("*.c")), reason="only the installed package is here, without its sources")
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="from 3.13 on these headers make objects of another shape")
def test_free_threaded_build_is_declined(tmp_path: Path) -> None:
    module = tmp_path / "_native.so"
    build(module, "-O0", "-DPy_GIL_DISABLED", *map(str, sorted(SOURCES.glob("*.c"))))

    assert python(ASKS, module).strip() == "False it relies on the GIL, and this Python is free-threaded"
