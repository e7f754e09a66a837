"""End a pool of threads or processes without stopping the event loop.

`Executor.shutdown(wait=True)` waits for the calls that run; awaited as it stands, as some guides have it, it stops the
whole loop and then fails, for it returns None. Work that has not begun is cancelled.
"""

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Executor


def end_pool(pool: "Executor") -> "asyncio.Future[None]":
    """Begin to end `pool`; the future is done when all of its calls have ended.

    A thread of its own waits, not one of the loop's pool: `asyncio.run` would wait for that one beyond our deadline.

    Raises:
        RuntimeError: when the system gives no thread.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def wait() -> None:
        error: BaseException | None = None
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except Exception as failure:
            error = failure
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=wait, name="memtools end of a pool", daemon=True).start()
    return ended
