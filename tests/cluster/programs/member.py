"""A process of a pool that does what the lines of its standard input say, and answers each with a line of JSON."""

import asyncio
import json
import os
import random
import sys
import time

from memtools.cluster import LeaseTimeout, join

url, pool, budget, ttl, name = sys.argv[1:]
lost = []
leases = {}
cluster = join(url, pool=pool, budget=int(budget), ttl=float(ttl), name=name, on_lease_lost=lost.append)


def take(name, size, timeout):
    lease = cluster.lease(size, timeout=timeout)
    try:
        lease.__enter__()
    except LeaseTimeout as error:
        return {"refused": str(error)}
    leases[name] = lease
    return {"fence": lease.fence, "local": lease.is_local}


def give(name):
    lease = leases.pop(name)
    was_lost = lease.is_lost
    lease.__exit__(None, None, None)
    return {"lost": was_lost}


def work(operations, largest):
    done = {"granted": 0, "refused": 0, "local": 0, "given": 0, "lost": 0}
    while operations:
        if leases and random.random() < 0.5:
            done["lost"] += give(random.choice(list(leases)))["lost"]
            done["given"] += 1
        else:
            answer = take(str(random.random()), random.randint(1, largest), random.choice((0, 0.02)))
            done["granted"] += "fence" in answer
            done["refused"] += "refused" in answer
            done["local"] += answer.get("local", False)
        operations -= 1
    return done


def give_all():
    for name in list(leases):
        give(name)
    return {}


def block_loop(seconds, size):
    async def main():
        async with cluster.lease(size) as lease:
            time.sleep(seconds)  # noqa: ASYNC251  # that is the point
            return {"lost": lease.is_lost}

    return asyncio.run(main())


def fork(size):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with cluster.lease(size, timeout=1):
                os.write(writer, json.dumps(sorted(node.pid for node in cluster.nodes())).encode())
            cluster.close()
        finally:
            os._exit(0)
    os.close(writer)
    found = os.read(reader, 1000)
    os.waitpid(pid, 0)
    return {"child": pid, "pids": json.loads(found)}


def statistics():
    found = cluster.statistics()
    return {name: getattr(found, name) for name in found.__match_args__}


def nodes():
    return [node.to_dict() for node in cluster.nodes()]


def close():
    cluster.close()
    return {}


def told_lost():
    return len(lost)


for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        answer = globals()[name](*arguments)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
