"""What `memtools attach` has a process without a black box do: it is observed for a while, in a thread of its own.

Run in that process, not in the one that asks. While it lasts, the ledger counts and tasks that are created are
followed, those of uvicorn's requests by the name of their route; afterwards everything is as before.
"""

import sys
import time
from collections.abc import Callable, Generator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from memtools._threads import disregard_thread
from memtools.black_box._answers import answer as make_answer
from memtools.integrations.asgi import is_routed, route_template
from memtools.ledger import active_owner, choose_meter
from memtools.ledger._instrument import track_all_loops
from memtools.ledger._ledger import look_up_name, name_late

# The classes whose method `run_asgi` is the task of a request.
_SERVERS: Final = ("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl")


def observe(word: str, seconds: float) -> dict[str, Any]:  # Any: what JSON can hold
    """Observe this process, and return the answer to a question.

    Args:
        word: `"report"`, `"leaks"`, `"heap"` or `"owners"`.
        seconds: for how long.
    """
    disregard_thread()
    choose_meter()  # now, or its modules would count as growth
    if word == "owners":
        return _owners(seconds)
    if word != "report":
        return make_answer(word, seconds, report=None, wait=time.sleep)
    owners: dict[str, Any] = {}

    def wait(seconds: float) -> None:
        owners.update(_owners(seconds))

    heap: dict[str, Any] = make_answer("heap", seconds, report=None, wait=wait)
    if not owners:  # there is no room for counting the heap
        wait(seconds)
    return owners | {
        "word": word,
        "lines": [*owners["lines"], "", *heap["lines"]],
        "found": {"owners": owners["found"], "heap": heap["found"]},
    }


def _owners(seconds: float) -> dict[str, Any]:  # Any: what JSON can hold
    with _counting():
        return make_answer("owners", seconds, report=None, wait=time.sleep)


@contextmanager
def _counting() -> Generator[None]:
    """Let the ledger count, and follow the tasks that are created from now on."""
    meter = choose_meter()
    meter.acquire()
    disregard_thread()  # again: the native ledger may have been loaded just now
    try:
        tracking = track_all_loops(meter)
        try:
            with _named_requests():
                yield
        finally:
            tracking.close()
    finally:
        meter.release()


@contextmanager
def _named_requests() -> Generator[None]:
    """Name the tasks of requests by their routes, where uvicorn serves them."""
    replaced: list[tuple[Any, Any]] = []
    try:
        for name in _SERVERS:
            cycle: Any = getattr(sys.modules.get(name), "RequestResponseCycle", None)
            original = getattr(cycle, "run_asgi", None)
            if original is not None:
                cycle.run_asgi = _naming(original)
                replaced.append((cycle, original))
        yield
    finally:
        for cycle, original in replaced:
            with suppress(AttributeError):
                cycle.run_asgi = original


def _naming(original: Callable[..., Any]) -> Callable[..., Any]:
    # Plain functions that return what they are given to await: no frame of memtools is in a traceback of the service.
    def run_asgi(self: Any, app: Callable[..., Any]) -> Any:
        def call(scope: MutableMapping[str, Any], receive: Any, send: Callable[..., Any]) -> Any:
            owner = active_owner()
            if owner is None:
                return app(scope, receive, send)
            name_late(owner, lambda: (route_template(scope) or "<unmatched>", is_routed(scope)))

            def send_and_name(message: Any) -> Any:
                look_up_name(owner)  # the router has run
                return send(message)

            return app(scope, receive, send_and_name)

        return original(self, call)

    return run_asgi
