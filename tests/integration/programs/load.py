"""Send requests over kept connections, without a second try, and print what came of them as JSON.

    python load.py ADDRESS PATH REQUESTS CLIENTS REQUESTS_PER_SECOND

Some clients pause between two requests, so that there are idle connections at any time.
"""

import http.client
import json
import random
import sys
import threading
import time
from collections import Counter

TIMEOUT_S = 60
IDLE_S = 0.5


class Load:
    """Clients that share a number of requests."""

    def __init__(self, address, path, requests, rate):
        self.address, self.path = address, path
        self.left, self.interval_s = requests, 1 / rate
        self.next_at = time.monotonic()
        self.lock = threading.Lock()
        self.errors, self.answers = Counter(), Counter()
        self.largest, self.slowest_s = 0, 0.0

    def take(self):
        with self.lock:
            self.left -= 1
            self.next_at = max(self.next_at + self.interval_s, time.monotonic() - 1)
            return self.left >= 0, self.next_at

    def run(self, seed):
        draw = random.Random(seed)
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT_S)
        while True:
            is_left, at = self.take()
            if not is_left:
                break
            time.sleep(max(0, at - time.monotonic()) + (IDLE_S if draw.random() < 0.02 else 0))
            started = time.monotonic()
            try:
                connection.request("GET", self.path)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} {body[:80]!r}")
            except Exception as error:
                connection.close()
                with self.lock:
                    self.errors[f"{type(error).__name__}: {error}"] += 1
            else:
                told = json.loads(body)
                with self.lock:
                    self.answers[told["pid"]] += 1
                    self.largest = max(self.largest, told["size"])
                    self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        connection.close()


if __name__ == "__main__":
    address, path, requests, clients, rate = sys.argv[1:]
    load = Load(address.removeprefix("http://"), path, int(requests), float(rate))
    threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(int(clients))]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        json.dumps(
            {
                "answers": load.answers,
                "errors": load.errors,
                "largest": load.largest,
                "slowest_s": round(load.slowest_s, 3),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )
