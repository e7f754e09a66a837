"""Libraries in C and Rust under budgets: none is handed a failure, and each call ends with its result or its error."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memtools.ledger import native_reason

pytestmark = pytest.mark.skipif(bool(native_reason()), reason=f"no native ledger: {native_reason()}")

PROGRAM = Path(__file__).with_name("programs") / "foreign_code.py"
LIBRARIES = [
    "cbor2", "json", "lxml", "msgpack", "msgspec", "numpy", "orjson", "pandas", "polars", "pydantic_core", "sqlite3",
    "ujson",
]  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES)
def test_call_of_a_library_ends_with_its_result_or_error(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")

    command = [sys.executable, "-X", "faulthandler", str(PROGRAM), library, "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ, check=False)

    assert done.returncode == 0, done.stderr
    assert "panicked" not in done.stderr
    assert " 0 exceeded" not in done.stdout
