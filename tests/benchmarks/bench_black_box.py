"""What the black box costs a program that allocates much, in instructions: the file open against closed.

Counted by callgrind (`apt-get install valgrind`), since two per cent are less than the noise of a clock. Of each
program a run of few rounds is taken from one of more, so that the start of the interpreter counts in neither. Another
build of the extension, whose path is in `OTHER_BUILD`, is the measure of this one without a file.
"""

import os
import re
import subprocess
import sys
import tempfile

from _compare import Result, print_results

from memtools.black_box._file import BoxFile
from memtools.black_box._layout import SECTIONS, SIZE
from memtools.ledger import _native

_FEW, _MORE = 1, 4
_PROGRAM = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("memtools.ledger._native", {file!r})
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
native.install()
native.set_counting(True)
if {fd} >= 0:
    native.black_box_open({fd}, {hot}, {threads}, {counters}, {size})
counter = native.Counter()
native.switch(counter)
def tuples():
    kept = []
    for number in range(30_000):
        kept.append((number, str(number), [number, number + 1]))
        if len(kept) > 5_000:
            del kept[:2_500]
document = json.dumps([{{"id": n, "name": f"name {{n}}", "values": [n * 1.5, n, None]}} for n in range(2_500)])
def loads():
    json.loads(document)
def lists():
    {{number: [float(other) for other in range(number, number + 8)] for number in range(7_500)}}
for _ in range({rounds}):
    {work}()
"""


def instructions(work: str, rounds: int, file: str, fd: int) -> int:
    """Return how many instructions a run takes."""
    program = _PROGRAM.format(
        file=file, fd=fd, hot=SECTIONS["hot"].at, threads=SECTIONS["threads"].at,
        counters=SECTIONS["counters"].at, size=SIZE, work=work, rounds=rounds,
    )  # fmt: skip
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-S", "-c", program],
        pass_fds=() if fd < 0 else (fd,), env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None
    return int(found[1])


def a_round(work: str, file: str, fd: int = -1) -> float:
    """Return the instructions of one round."""
    return (instructions(work, _MORE, file, fd) - instructions(work, _FEW, file, fd)) / (_MORE - _FEW)


def run(rounds: int = 1) -> list[Result]:
    """Return the price of each program; one round is enough, since instructions do not vary with the machine."""
    own = _native.__file__
    assert own is not None
    other = os.environ.get("OTHER_BUILD")
    found: list[Result] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = BoxFile.create(os.path.join(folder, "bench.box"), {})
        for work in ("tuples", "loads", "lists"):
            closed = a_round(work, own)
            ratio = a_round(work, own, file.fd) / closed
            found.append(Result(f"{work}, with the box", "without", ratio, target=1.015, unit_note="instructions"))
            if other is not None:
                ratio = closed / a_round(work, other)
                found.append(Result(f"{work}, without the box", other, ratio, target=1.01, unit_note="instructions"))
        file.close()
    return found


if __name__ == "__main__":
    print_results(run())
