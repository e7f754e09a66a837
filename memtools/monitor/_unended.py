"""Tasks that have not ended, by what they run and where they wait.

Leaves to others: whether that is too many (`_advice`).
"""

import os
import sys
from collections import Counter
from typing import Any, Final

from memtools.records import record

_ASYNCIO: Final = os.path.join(os.path.dirname(os.__file__), "asyncio")


@record
class Unended:
    """The tasks of the loops in this process that run one coroutine function and wait at one place.

    Attributes:
        name: the function's qualified name.
        tasks: how many there are.
        place: `file:line` where they wait; empty where they have not begun, or are no coroutines of Python.
    """

    name: str
    tasks: int
    place: str


def unended_tasks() -> tuple[Unended, ...]:
    """Return the tasks that have not ended, the most frequent first; from any thread."""
    asyncio: Any = sys.modules.get("asyncio.tasks")  # Any: what is looked at is the table behind `all_tasks`
    if asyncio is None:
        return ()
    counted: Counter[tuple[str, str]] = Counter()
    for task in _alive(asyncio):
        if not task.done():
            coroutine: Any = task.get_coro()
            counted[str(getattr(coroutine, "__qualname__", "a coroutine")), _place_of(coroutine)] += 1
    return tuple(Unended(name, tasks, place) for (name, place), tasks in counted.most_common())


def _alive(asyncio: Any) -> list[Any]:
    # Not `all_tasks()`: it asks for the tasks of one loop. The table's name is older than Python 3.12; eager tasks have
    # one of their own since.
    table: Any = getattr(asyncio, "_scheduled_tasks", None) or getattr(asyncio, "_all_tasks", ())
    for _ in range(100):
        try:
            return list(table)
        except RuntimeError:  # another thread has added a task meanwhile
            continue
    return []


def _place_of(coroutine: Any) -> str:
    # The innermost await of the program itself; where asyncio waits inside of it is no news.
    frame: Any = None
    for _ in range(100):
        found = getattr(coroutine, "cr_frame", None)
        if found is None:
            break
        if frame is None or not found.f_code.co_filename.startswith(_ASYNCIO):
            frame = found
        coroutine = getattr(coroutine, "cr_await", None)
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
