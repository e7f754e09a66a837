"""Hook for the configuration of gunicorn that has workers replaced when they have grown.

gunicorn is not imported: a hook gets the worker that it is called for.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from memtools._threads import OwnThread
from memtools.errors import ConfigError
from memtools.integrations._recycling import (
    ASK_AGAIN_S,
    DEFAULT_JITTER,
    DEFAULT_WARM_UP,
    INTERVAL_S,
    WorkerSize,
    WorkerTurns,
    make_options,
)
from memtools.integrations._requests import HasLevel

# Any: gunicorn ships no types.
Worker: TypeAlias = Any
Hook: TypeAlias = Callable[[Worker], None]

_POLL_S: Final = 0.01
_LINGER_S: Final = 0.5
_WORKER_ATTRIBUTES: Final = ("cfg", "alive", "log")


def recycle_workers(
    *,
    growth: int | str,
    limit: int | str | None = None,
    monitor: HasLevel | None = None,
    warm_up: int = DEFAULT_WARM_UP,
    jitter: float = DEFAULT_JITTER,
) -> Hook:
    """Return a `post_worker_init` hook for `gunicorn.conf.py` that has each worker replaced when it has grown.

    ```python
    from memtools.integrations.gunicorn import recycle_workers

    post_worker_init = recycle_workers(growth="200 MiB")
    ```

    A hook of your own calls it: `recycle = recycle_workers(growth="200 MiB")`, and in `post_worker_init(worker)`
    `recycle(worker)`. It is made once, in the configuration, not in the hook: the workers take turns by a file that
    they inherit.

    For sync, gthread and gevent workers, and those of uvicorn, with and without `preload_app`; others end by SIGTERM
    likewise, and have not been tried. A worker that has grown waits for its turn: only one goes at a time, and only
    while all the others serve. Then it is asked to end as gunicorn itself asks, by SIGTERM: it accepts no further
    connection, finishes its requests, and gunicorn starts another. One that has not ended after 30 s is asked again.
    The reason is in the error log of gunicorn, as a warning. With one worker, connections wait in the socket of the
    master until the next one serves.

    A thread of the worker, under gevent a greenlet, looks at its private resident memory four times a second: 0.1 ms
    each.

    Args:
        growth: over its size when it was warm; a size or a share of the limit.
        limit: a worker of this size is replaced whatever it has grown; None for no limit.
        monitor: while its level is `CRITICAL`, a quarter of the growth suffices; a `MemoryMonitor`, or another object
            with a `level`.
        warm_up: requests after which a worker is warm; five minutes suffice, too.
        jitter: up to this share is added to the growth, different for each worker, so that they do not go together.

    Raises:
        ConfigError: for an argument that makes no sense.
        OSError: if the temporary file for the turns cannot be made.
    """
    options = make_options(growth, limit, monitor, warm_up, jitter)
    turns = WorkerTurns(1)

    def post_worker_init(worker: Worker) -> None:
        if not all(hasattr(worker, name) for name in _WORKER_ATTRIBUTES):
            raise ConfigError(
                "worker", worker, "a worker of gunicorn; for uvicorn without gunicorn there is RecyclingMiddleware"
            )
        turns.expect(max(1, worker.cfg.workers))
        if _is_of_uvicorn(worker):
            # Its loop never calls post_request nor looks at `alive`. It takes the application after this hook.
            from memtools.integrations.uvicorn import RecyclingMiddleware

            worker.wsgi = RecyclingMiddleware.of_worker(worker.wsgi, options, turns)
            return
        OwnThread(
            target=_watch, args=(worker, turns, WorkerSize(options)), name="memtools-recycling", daemon=True
        ).start()

    return post_worker_init


def _is_of_uvicorn(worker: Worker) -> bool:
    return any(kind.__name__ == "UvicornWorker" for kind in type(worker).__mro__)


def _watch(worker: Worker, turns: WorkerTurns, size: WorkerSize) -> None:
    try:
        while not worker.booted:
            time.sleep(_POLL_S)
        turns.join()
        while (reason := size.reason_to_recycle(worker.nr)) is None or not turns.try_take(size.grown_bytes):
            time.sleep(INTERVAL_S)
        worker.log.warning("%s", reason)
        if hasattr(worker, "max_keepalived"):
            try:
                _drain_threads(worker)
            except Exception:  # a worker that no longer accepts has to end all the same
                worker.log.exception("worker %d ends without being drained", os.getpid())
        _ask_to_end(worker)
        while True:
            time.sleep(ASK_AGAIN_S)
            worker.log.warning("worker %d was to end %.0f s ago: it is asked again", os.getpid(), ASK_AGAIN_S)
            worker.alive = False  # for a program that has put its own handler in the place of gunicorn's
            _ask_to_end(worker)
    except Exception:
        logging.getLogger("memtools.integrations").exception("worker %d is not replaced", os.getpid())


def _drain_threads(worker: Worker) -> None:
    """Wait until a gthread worker has no open connection, or those that are idle have been so for long enough.

    Seen with gunicorn 22 to 25: at its end such a worker drops kept connections whose client may be sending its next
    request, and before 24 those, too, that were accepted and have not sent their first one.
    """
    deadline = time.monotonic() + worker.cfg.keepalive + _LINGER_S
    worker.max_keepalived = 0  # each answer closes its connection from now on
    if hasattr(worker, "set_accept_enabled"):
        worker.worker_connections = 0  # its loop accepts no further one
        worker.method_queue.defer(int)  # wakes that loop
    else:
        for listener in worker.sockets:
            worker.poller.unregister(listener)
    time.sleep(INTERVAL_S)
    while worker.nr_conns > 0 and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _ask_to_end(worker: Worker) -> None:
    if callable(signal.getsignal(signal.SIGTERM)):
        os.kill(os.getpid(), signal.SIGTERM)
    else:  # a program has taken the handler away, and the signal would kill its requests
        worker.alive = False
