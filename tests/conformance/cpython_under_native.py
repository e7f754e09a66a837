"""Run CPython's own suites with and without the native meter, and compare their results.

`python tests/conformance/cpython_under_native.py test_json test_list` prints one line per suite, and returns 0 if all
results are equal. Each suite runs in an interpreter of its own, in which a scope is open all the time. Compared are the
number of tests, and the name of every test that failed, broke or was skipped. `--all` runs the suites that
docs/performance.md names.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ALL = ["test_json", "test_asyncio", "test_threading", "test_gc", "test_list", "test_dict"]
EXCLUDED = {
    # In 3.12.1 and other releases it does not end, with or without the meter: _PyErr_SetObject loops.
    "test_print_exception_gh_102056": "loops for ever in some releases of CPython",
}
CHILD = Path(__file__).with_name("_cpython_suite.py")


def outcome(suite: str, *, counted: bool) -> dict[str, object]:
    """Return what the suite says of itself."""
    command = [sys.executable, str(CHILD), "counted" if counted else "alone", suite, *EXCLUDED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=tempfile.gettempdir())
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"code": done.returncode, "error": done.stderr[-2000:]}
    found: dict[str, object] = json.loads(lines[-1])
    return found


def compare(suites: list[str]) -> int:
    """Print a line per suite; return how many differ."""
    different = 0
    for suite in suites:
        alone, counted = outcome(suite, counted=False), outcome(suite, counted=True)
        if alone == counted and "run" in alone:
            print(f"{suite}: {alone['run']} tests, the same")
            continue
        different += 1
        print(f"{suite}: differs\n  alone   {alone}\n  counted {counted}")
    return different


if __name__ == "__main__":
    sys.exit(compare(ALL if sys.argv[1:] == ["--all"] else sys.argv[1:]))
