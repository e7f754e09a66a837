"""A thread for each request waits for ever for an event that is never set."""

import threading

from _shape import play

VERDICT = "python"
OWNER = r"thread|watch_upload|_active"

abandoned = threading.Event()


def watch_upload(event: threading.Event) -> None:
    body = bytes(30_000)
    event.wait()
    del body


def step(leaks: bool) -> None:
    event = abandoned if leaks else threading.Event()
    event.set() if not leaks else None
    threading.Thread(target=watch_upload, args=(event,), daemon=True).start()


if __name__ == "__main__":
    play(step)
