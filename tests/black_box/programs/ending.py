"""Programs that end, or are ended, while a black box is open; the first word says which, the second is the folder."""

import faulthandler
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from memtools import memory_scope
from memtools.black_box import BlackBox, read_black_box
from memtools.ledger import statistics
from memtools.readings import Level, Reading

MIB = 2**20
KIND, FOLDER = sys.argv[1:3]
box = BlackBox(FOLDER, name="program")
logging.basicConfig(format="%(message)s")


def observe(used_mib: int = 100, limit_mib: int = 1000, level: Level = Level.NORMAL) -> None:
    box.observe(Reading(used_mib * MIB, limit_mib * MIB, time.monotonic()), level)


def work(rounds: int = 30) -> list[list[str]]:
    kept: list[list[str]] = []
    for number in range(rounds):
        with memory_scope(f"work-{number % 7}"):
            kept.append([str(each) for each in range(500)])
            if len(kept) > 10:
                del kept[:6]
    return kept


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def held() -> int:
    """What the ledger itself says."""
    return sum(account.live_bytes or 0 for account in statistics().accounts)


def killed() -> None:
    with box, memory_scope("service"), memory_scope("POST /import"):
        rows = [bytes(MIB) for _ in range(20)]
        observe()
        die()
        print(rows)


def large_list() -> None:
    with box, memory_scope("service"), memory_scope("one large list"):
        observe(limit_mib=int(sys.argv[4]))
        rows = [0] * int(sys.argv[3])  # charged before its pages are touched, where the kernel kills
        die()
        print(rows)


def runaway() -> None:
    """One request among fifty."""
    with box, memory_scope("service"):
        kept = []
        for _ in range(50):
            with memory_scope("GET /list"):
                kept.append([str(each) for each in range(100)])
        with memory_scope("POST /report"):
            rows: list[bytes] = []
            while True:
                rows.append(bytes(MIB))
                if len(rows) % 5 == 0:
                    observe(len(rows), int(sys.argv[3]))
                if len(sys.argv) > 4 and len(rows) >= int(sys.argv[4]):
                    die()


def leak() -> None:
    with box, memory_scope("service"):
        kept: list[object] = []
        while True:
            with memory_scope("POST /import"):
                kept.append([str(each) * 20 for each in range(3000)])
            with memory_scope("GET /health"):
                [str(each) * 20 for each in range(3000)]
            box.observe(reading_of_this_process())


def native_leak() -> None:
    import mmap

    with box, memory_scope("service"):
        kept: list[object] = []
        while True:
            block = mmap.mmap(-1, 4 * MIB)  # not of Python's allocators
            for at in range(0, 4 * MIB, 4096):
                block[at] = 1
            kept.append(block)
            box.observe(reading_of_this_process())
            if len(sys.argv) > 4 and len(kept) * 4 >= int(sys.argv[4]):
                die()


def forks() -> None:
    """Children that grow beside their parent, until the kernel kills one of them, or the parent."""
    with box, memory_scope("service"):
        for _ in range(20):
            if os.fork() == 0:
                with memory_scope("child"):
                    rows: list[bytes] = []
                    while True:
                        rows.append(b"x" * MIB)
                        box.observe(reading_of_this_process())
                        time.sleep(0.002)
            observe()
        while True:
            try:
                os.wait()
            except ChildProcessError:
                return


def reading_of_this_process() -> Reading:
    from memtools.readings import resident_bytes

    return Reading(resident_bytes(), int(sys.argv[3]) * MIB, time.monotonic())


def subinterpreter() -> None:
    import importlib

    with box, memory_scope("service"):
        for name in ("_interpreters", "_xxsubinterpreters"):
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            module.create()
            break
        work()
        die()


def ended() -> None:
    box.open()
    work()
    observe()


def raised() -> None:
    box.open()
    raise ValueError("of the program")


def exec_itself() -> None:
    box.open()
    observe()
    os.execv(sys.executable, [sys.executable, sys.argv[0], "ended", FOLDER])


def harm() -> None:
    """Do something to the file, and go on; what the ledger says must be what it says without a file."""
    what = sys.argv[3]
    with memory_scope("outer"):
        if "faulthandler-before" in what:
            faulthandler.enable()
        box.open()
        path = box.path
        if "faulthandler-after" in what:
            faulthandler.enable()
        if "seen" in what:
            observe()  # it looks after the handler of faults
        if "cut" in what:
            os.truncate(path, 0)
        if "half" in what:
            os.truncate(path, 3 * 4096)
        if "unlink" in what:
            os.unlink(path)
        if "garbage" in what:
            with open(path, "r+b") as file:
                file.write(os.urandom(os.path.getsize(path)))
        if "closed" in what:
            os.closerange(3, 1000)
            mine = os.open(f"{FOLDER}/mine", os.O_RDWR | os.O_CREAT)
            os.write(mine, b"x" * 3_000_000)
        with memory_scope("after"):
            kept = work()
            print("held", held() > sum(map(sys.getsizeof, kept)))
        for _ in range(3):
            observe()
            box.write_last_words(Reading(1, 2, time.monotonic()), Level.WARNING)
        print("counts", box.counts_owners)
        if "closed" in what:
            print("untouched", Path(FOLDER, "mine").read_bytes() == b"x" * 3_000_000)
    box.close()
    print("lives")


def bus_error() -> None:
    """A fault that is not the file's ends the program as it would alone."""
    import ctypes
    import mmap
    import tempfile

    if sys.argv[3] == "faulthandler-before":
        faulthandler.enable()
    box.open()
    if sys.argv[3] == "faulthandler-after":
        faulthandler.enable()
    if sys.argv[3] == "faulthandler-seen":
        faulthandler.enable()
        observe()
    if sys.argv[3] == "sent":
        os.kill(os.getpid(), signal.SIGBUS)
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        view = mmap.mmap(file.fileno(), 4096)
        file.truncate(0)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(view)), 1, 1)


def fork() -> None:
    """The parent's file is the parent's; the child makes one of its own."""
    with box, memory_scope("outer"):
        observe()
        stop = threading.Event()
        thread = threading.Thread(target=lambda: [work() for _ in iter(stop.is_set, True)])
        thread.start()
        pid = os.fork()
        if pid == 0:
            with memory_scope("of the child"):
                rows = [bytes(MIB) for _ in range(8)]
                before = box.path
                observe(50)
                print("child", repr(before), box.path != "", flush=True)
                die()
                print(rows)
        os.waitpid(pid, 0)
        stop.set()
        thread.join()
        kept = work(10)
        subprocess.run([sys.executable, "-c", "pass"], check=True)  # by vfork
        expected = held()
        subprocess.run(["cp", box.path, f"{FOLDER}/copy"], check=True)  # to read it takes memory, which is counted, too
        found = read_black_box(f"{FOLDER}/copy")
        counted = sum(holding.held_bytes for holding in found.holdings if holding.path != ("<no owner>",))
        print("parent", abs(counted - expected) < 20_000 < counted, box.counts_owners)
        del kept


def child(folder: str) -> None:
    with BlackBox(folder, name="child"):
        work()


def child_of_a_fork() -> None:
    observe(60)


def spawn() -> None:
    with box:
        for method in ("spawn", "fork"):
            context = multiprocessing.get_context(method)
            target, words = (child, (FOLDER,)) if method == "spawn" else (child_of_a_fork, ())
            process = context.Process(target=target, args=words)
            process.start()
            process.join()
            print(method, process.exitcode)


if __name__ == "__main__":
    globals()[KIND]()
