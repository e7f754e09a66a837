"""Budgets in greenlets whose library has replaced the functions of `threading` before or after memtools was imported.

    python budgets_of_greenlets.py gevent|eventlet before|after|not

prints "right" where each greenlet and thread ends, a greedy one with its error; fails or hangs otherwise.
"""

import faulthandler
import sys
from typing import Any

faulthandler.dump_traceback_later(50, exit=True)  # before the test gives up: where it hangs
library, order = sys.argv[1:]
ROWS = 30_000


def patch() -> None:
    if library == "gevent":
        import gevent.monkey

        gevent.monkey.patch_all()
    else:
        import eventlet

        eventlet.monkey_patch()


if order == "before":
    patch()
elif order == "not":
    __import__(library)  # outside of any budget

import threading  # noqa: E402  # the order matters here
import time  # noqa: E402

from memtools import BudgetExceeded, memory_budget  # noqa: E402

if order == "after":
    patch()


@memory_budget("3 MiB", meter="native")
def answer() -> str:
    sleep(0.01)
    return "answered"


@memory_budget("3 MiB", meter="native")
def greedy() -> None:
    kept = []
    for number in range(ROWS):
        kept.append(bytes(1000))
        if number % 500 == 0:
            sleep(0)


def outcome(function: Any) -> object:
    """Return what the function returns, or the name of the exception that it raises. Any: a function of each type."""
    try:
        return function()
    except BudgetExceeded as error:
        return type(error).__name__


def run_together(*functions: Any) -> list[object]:
    """Run the functions side by side. Any: as above."""
    if library == "gevent":
        import gevent

        greenlets = [gevent.spawn(outcome, function) for function in functions]
        gevent.joinall(greenlets, raise_error=True)
        return [greenlet.value for greenlet in greenlets]
    import eventlet

    return [greenlet.wait() for greenlet in [eventlet.spawn(outcome, function) for function in functions]]


def run_in_pool(*functions: Any) -> list[object]:
    """Run the functions in threads of the operating system. Any: as above."""
    if library == "gevent":
        import gevent

        return [gevent.get_hub().threadpool.apply(outcome, (function,)) for function in functions]
    from eventlet import tpool

    return [tpool.execute(outcome, function) for function in functions]


def sleep(seconds: float) -> None:
    if order == "not" and threading.current_thread() is threading.main_thread():
        if library == "gevent":
            import gevent

            gevent.sleep(seconds)
        else:
            import eventlet

            eventlet.sleep(seconds)
    else:
        time.sleep(seconds)


def main() -> None:
    found = [outcome(answer), *run_together(answer, answer), *run_together(greedy)]
    expected: list[object] = ["answered", "answered", "answered", "BudgetExceeded"]
    thread = threading.Thread(target=lambda: found.append(outcome(greedy)))
    thread.start()
    thread.join()
    found += run_in_pool(answer, greedy)
    expected += ["BudgetExceeded", "answered", "BudgetExceeded"]
    if found != expected:
        sys.exit(f"{found}, and not {expected}")
    print("right")


if __name__ == "__main__":
    main()
