"""Twelve months on two workers of 512 MiB: each worker takes as many at once as it has room for.

Run it with `python docs/examples/fleet_dask.py`; it needs `pip install 'memtools[dask]'`, and takes some ten seconds.
"""

import logging
import time

from distributed import Client, LocalCluster

from memtools.cluster.dask import MemoryPlugin, needs_of, nodes, submit
from memtools.errors import ConfigError

MIB = 2**20


def add_up(month):
    """Load a month, which takes 120 MiB, and add it up."""
    rows = bytearray(120 * MIB)
    time.sleep(0.2)
    return month * len(rows) // MIB


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # says what needs="auto" takes
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=4, memory_limit="512 MiB", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(MemoryPlugin())
        for node in nodes(client):
            print(f"worker {node.name}: {node.used_bytes // MIB} of {node.limit_bytes // MIB} MiB in use")

        # Six are given a size, and the accounts of their calls teach the size of those to come.
        first = [submit(client, add_up, month, needs="130 MiB") for month in range(1, 7)]
        total = sum(client.gather(first))
        time.sleep(1)  # a client asks for the peaks of a function once a second
        rest = [submit(client, add_up, month, needs="auto") for month in range(7, 13)]
        total += sum(client.gather(rest))
        print(needs_of(client, add_up))

        try:
            submit(client, add_up, 13, needs="1 GiB")
        except ConfigError as error:
            print(error)
    assert total == 120 * sum(range(1, 13))
    print("total", total)


if __name__ == "__main__":
    main()
