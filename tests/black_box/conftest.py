"""A folder for black boxes, and programs that end in every way."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memtools.ledger import forget_accounts

PROGRAM = Path(__file__).with_name("programs") / "ending.py"
TIMEOUT_S = 120

End = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def fresh_accounts() -> None:
    """Forget the accounts of earlier tests: after 256 names at the top, further ones are added up as "<other>"."""
    forget_accounts()


@pytest.fixture
def end(tmp_path: Path) -> End:
    """Run the program that ends in a given way, in the folder of the test; `before` stands before its command line."""

    def run(kind: str, *words: str, before: tuple[str, ...] = (), **env: str) -> "subprocess.CompletedProcess[str]":
        command = [*before, sys.executable, str(PROGRAM), kind, str(tmp_path), *words]
        return subprocess.run(
            command, env={**os.environ, **env}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )

    return run
