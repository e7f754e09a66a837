"""Run suites of CPython's own with and without the native ledger, and compare what they say.

`python tests/conformance/cpython_under_native.py test_json test_list` prints one line per suite; 0 if all are the same.

Each suite runs in an interpreter of its own, in which a scope is open all the while. Compared is the number of tests
run, and the name of every one that failed, broke or was skipped.
"""

import json
import subprocess
import sys
import tempfile

CHILD = """
import io, json, sys, unittest
is_counted, suite = sys.argv[1] == "counted", sys.argv[2]
if is_counted:
    from memtools.ledger import choose_meter, open_owner
    open_owner("suite", "scope", meter=choose_meter("native"))
from test import support
support.use_resources = None
found = unittest.defaultTestLoader.loadTestsFromName(f"test.{suite}")
result = unittest.TextTestRunner(stream=io.StringIO(), verbosity=0).run(found)
print(json.dumps({
    "run": result.testsRun,
    "failed": sorted(str(test) for test, _ in result.failures),
    "broken": sorted(str(test) for test, _ in result.errors),
    "skipped": sorted(str(test) for test, _ in result.skipped),
}), file=sys.__stdout__, flush=True)
"""


def outcome(suite: str, *, counted: bool) -> dict[str, object]:
    """Return what the suite says of itself."""
    command = [sys.executable, "-c", CHILD, "counted" if counted else "alone", suite]
    # Elsewhere: in the checkout, `-c` would find its sources before what is installed.
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
    sys.exit(compare(sys.argv[1:]))
