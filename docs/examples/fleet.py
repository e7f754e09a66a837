"""Four processes with one budget: they count the names in the standard library's files, and lease what each file needs.

Run it with `python docs/examples/fleet.py`, or with `--url redis://127.0.0.1:6379/0` on a Redis server. One of the
processes is killed on the way: what it had leased comes back, and its file is counted by another one.
"""

import argparse
import ast
import os
import signal
import tempfile
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

from memtools.cluster import join
from memtools.pools import WorkerDied, process_pool_scope

BUDGET = "1 GiB"
BYTES_PER_SOURCE_BYTE = 80  # of a syntax tree

_cluster = None


def join_fleet(url):
    """Join the pool, once in each process."""
    global _cluster
    _cluster = join(url, pool="fleet", budget=BUDGET, ttl=3, name="counter").open()


def count_names(path):
    """Count the names in a file; lease what its syntax tree takes."""
    source = Path(path).read_text(encoding="utf-8", errors="replace")
    with _cluster.lease(len(source) * BYTES_PER_SOURCE_BYTE + 1_000_000, timeout=60):
        return sum(isinstance(node, ast.Name) for node in ast.walk(ast.parse(source)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url")
    parser.add_argument("--files", type=int, default=120)
    options = parser.parse_args()
    paths = sorted(map(str, Path(os.__file__).parent.glob("*.py")))[: options.files]

    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{folder}/memory.db"
        with join(url, pool="fleet", budget=BUDGET, ttl=3, name="main") as cluster:
            with process_pool_scope(4, initializer=join_fleet, initargs=(url,), name="count") as pool:
                waiting = {pool.submit(count_names, path): path for path in paths}
                names, is_killed = {}, False
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        path = waiting.pop(future)
                        try:
                            names[path] = future.result()
                        except WorkerDied as error:
                            print(error)
                            waiting[pool.submit(count_names, path)] = path
                    if len(names) > len(paths) // 4 and not is_killed:
                        is_killed = True
                        for node in cluster.nodes():
                            print(f"  {node.name} {node.pid}: {node.used_bytes >> 20} MiB in use")
                        os.kill(pool.statistics().workers[0].pid, signal.SIGKILL)

            with cluster.lease("900 MiB", timeout=10):  # the budget is free again
                found = cluster.statistics()
            print(found)
    print(f"{len(names)} files, {sum(names.values()):,} names")
    assert len(names) == len(paths)
    assert found.leased_bytes == 900 * 2**20


if __name__ == "__main__":
    main()
