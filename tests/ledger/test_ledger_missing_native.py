"""The extension is looked up once where it was not built."""

import subprocess
import sys
from pathlib import Path


def test_missing_extension_is_looked_up_once() -> None:

    program = Path(__file__).with_name("programs") / "look_up_missing_extension.py"

    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout.split() == ["True", "0", "True"], done.stderr
