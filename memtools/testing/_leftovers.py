"""What the body of a test leaves behind: tasks that have not ended, threads, descriptors.

Leaves to others: when it is asked (`_marked`).
"""

import gc
import sys
import threading
import time
from collections import Counter
from typing import Any, Final

from memtools.readings import descriptors

# A thread ends a moment after the call that ends it.
_PATIENCE_S: Final = 0.5
# The runners of coroutine tests keep a task of their own between two tests.
_RUNNERS: Final = ("anyio", "pytest_asyncio", "_pytest")


class Leftovers:
    """What was there before; `found()` says what is there more."""

    def __init__(self) -> None:
        self._tasks = {id(task) for task in _tasks()}
        self._threads = set(threading.enumerate())
        self._descriptors = Counter(descriptors() or ())
        self._noted: tuple[str, ...] = ()

    def note_tasks(self) -> None:
        """Note the tasks that are left now, but for the one that asks: their loop may end before `found()` is asked."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or asyncio._get_running_loop() is None:
            return  # another library's loop
        mine = asyncio.current_task()
        self._noted = tuple(_line(task) for task in self._new_tasks() if task is not mine)

    def _new_tasks(self) -> list[Any]:
        return [task for task in _tasks() if id(task) not in self._tasks]

    def found(self) -> tuple[str, ...]:
        """Return what was left, one line each; threads are given half a second to end."""
        deadline = time.monotonic() + _PATIENCE_S
        while (lines := self._lines()) and lines != self._noted and time.monotonic() < deadline:
            gc.collect()  # a descriptor may hang on a cycle
            time.sleep(0.01)
        return lines

    def _lines(self) -> tuple[str, ...]:
        tasks = dict.fromkeys((*self._noted, *map(_line, self._new_tasks())))
        threads = [thread for thread in threading.enumerate() if thread not in self._threads]
        more = Counter(descriptors() or ()) - self._descriptors
        return (
            *tasks,
            *(f"thread {thread.name!r}" for thread in threads),
            *(f"descriptor {target}" + (f" ({count} times)" if count > 1 else "") for target, count in more.items()),
        )


def _tasks() -> list[Any]:  # Any: of asyncio, which may not be loaded
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return []
    # Of every loop, also of one that does not run now: nothing public lists those.
    found = [one for one in gc.get_objects() if issubclass(type(one), asyncio.Task)]
    return [task for task in found if not task.done() and not _is_runner(task)]


def _is_runner(task: Any) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    parts = code.co_filename.replace("\\", "/").split("/") if code is not None else ()
    return any(name in parts for name in _RUNNERS)


def _line(task: Any) -> str:
    return f"task {task.get_name()!r}: {_where(task)}"


def _where(task: Any) -> str:
    frames = task.get_stack(limit=1)
    if not frames:
        return "it has not begun"
    return f"it waits in {frames[0].f_code.co_qualname}, line {frames[0].f_lineno}"
