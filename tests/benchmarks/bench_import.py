"""The processor time of `import memtools` over that of its three libraries.

Each import runs in an interpreter of its own, in turns. The libraries are loaded first, although memtools itself loads
psutil and wrapt only when they are needed.
"""

import os
import statistics
import subprocess
import sys

from _compare import Result, print_results

_MAX_RATIO = 0.15
_LIBRARIES = "import psutil, wrapt, typing_extensions"
_PROGRAM = """
import time
began = time.process_time_ns()
{statement}
print(time.process_time_ns() - began)
"""


def run(rounds: int = 15) -> list[Result]:
    """Return the median, over the rounds, of the time of memtools over that of the libraries in the same round."""
    both = f"{_LIBRARIES}; import memtools"
    _import_ms(both)  # writes the byte code, which an installed package has already
    libraries, own = [], []
    for _ in range(rounds):
        libraries.append(_import_ms(_LIBRARIES))
        own.append(_import_ms(both) - libraries[-1])

    ratio = statistics.median(one / other for one, other in zip(own, libraries, strict=True))
    note = (
        f"processor time of a fresh interpreter: {statistics.median(own):.1f} ms more, "
        f"the libraries {statistics.median(libraries):.1f} ms"
    )
    return [Result("import memtools", "import psutil, wrapt, typing_extensions", ratio, _MAX_RATIO, note)]


def _import_ms(statement: str) -> float:
    command = [sys.executable, "-c", _PROGRAM.format(statement=statement)]
    # The byte code has to be written, as pip writes it for a user.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment).stdout
    return int(output) / 1e6


if __name__ == "__main__":
    print_results(run())
