"""What `import memtools` costs over the three libraries that it stands on.

Each import runs in an interpreter of its own, ours and theirs by turns, and tells the processor time that it took. The
promise is in milliseconds, because that is what a command line tool pays; so the ratio is to the promise.
"""

import os
import statistics
import subprocess
import sys

from _compare import Result, print_results

_PROMISE_MS = 15.0
_LIBRARIES = "import psutil, wrapt, typing_extensions"
_PROGRAM = """
import time
began = time.process_time_ns()
{statement}
print(time.process_time_ns() - began)
"""


def run(rounds: int = 15) -> list[Result]:
    """Return the median, over the rounds, of our import less the libraries' import of the same round."""
    _import_ms(f"{_LIBRARIES}; import memtools")  # writes the byte code, which a user pays once
    differences = []
    for _ in range(rounds):
        libraries = _import_ms(_LIBRARIES)
        differences.append(_import_ms(f"{_LIBRARIES}; import memtools") - libraries)

    over_ms = statistics.median(differences)
    note = f"processor time of a fresh interpreter, {over_ms:.1f} ms over the three libraries"
    return [Result("import memtools", f"a promise of {_PROMISE_MS:.0f} ms", over_ms / _PROMISE_MS, 1.0, note)]


def _import_ms(statement: str) -> float:
    command = [sys.executable, "-c", _PROGRAM.format(statement=statement)]
    # As a user has it: with the byte code that pip has written.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment).stdout
    return int(output) / 1e6


if __name__ == "__main__":
    print_results(run())
