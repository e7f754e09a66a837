"""A metric is labelled by user, and keeps a child for each of them."""

from itertools import count

from _shape import play
from prometheus_client import Counter

VERDICT = "python"
OWNER = r"Counter\._metrics"

requests = Counter("leak_requests", "requests by user", ["user"])
users = count()


def step(leaks: bool) -> None:
    for _ in range(30):
        user = next(users)
        requests.labels(f"user-{user}" if leaks else f"group-{user % 10}").inc()


if __name__ == "__main__":
    play(step)
