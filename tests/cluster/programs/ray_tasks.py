"""Tasks on a real Ray of three processors and 1 GiB; prints what came of them as JSON.

Ray is told to keep to the loopback device by the variable that it has for other systems, and to a folder of its own.
"""

import json
import os
import sys
import time

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["HOME"] = os.environ["RAY_TMPDIR"] = sys.argv[1]

import ray

from memtools.cluster.ray import remote
from memtools.errors import ConfigError

MIB = 2**20


def take(size_mib):
    """Take so much, and return when that began and ended."""
    began = time.monotonic()
    block = bytearray(size_mib * MIB)
    time.sleep(0.3)
    return began, time.monotonic(), len(block)


def fail():
    raise KeyError("of the program")


def chain(task, size_mib):
    return ray.get(task.remote(size_mib))[2]


def most_at_once(spans):
    return max(sum(began <= at < ended for began, ended, _ in spans) for at, _, _ in spans)


def refused(make):
    try:
        make()
    except ConfigError as error:
        return error.name
    return None


def main():
    ray.init(
        num_cpus=3, _memory=1024 * MIB, object_store_memory=80 * MIB, include_dashboard=False,
        _temp_dir=sys.argv[1], logging_level="ERROR", log_to_driver=False,
    )  # fmt: skip
    said = {"addresses": [node["NodeManagerAddress"] for node in ray.nodes()]}

    given = remote(take, needs="400 MiB")
    said["given"] = most_at_once(ray.get([given.remote(1) for _ in range(4)]))

    task = remote(take)
    said["default"] = task.needs().value_bytes
    ray.get([task.remote(300) for _ in range(5)])
    deadline = time.monotonic() + 30
    while task.needs().runs < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    needs = task.needs()
    said["learned"] = [needs.name, needs.value_bytes, needs.runs, needs.peak_bytes, needs.exact]
    said["auto"] = most_at_once(ray.get([task.remote(300) for _ in range(4)]))

    failing = remote(fail, max_retries=0)
    try:
        ray.get(failing.remote())
    except KeyError as error:
        said["error"] = str(error.args[0])
    said["failed"] = failing.needs().runs

    said["chained"] = ray.get(ray.remote(chain).remote(given, 1)) == MIB
    said["refused"] = [
        refused(lambda: remote(take, needs="2 GiB").remote(1)),
        refused(lambda: remote(take, needs=0)),
        refused(lambda: remote(take, memory=1)),
        refused(lambda: remote(take, num_returns=2)),
        refused(lambda: remote(print)),
    ]
    said["repr"] = repr(task)
    ray.shutdown()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
