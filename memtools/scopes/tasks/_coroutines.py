"""What a task is made of: the name of a coroutine, and the end of one that never begins.

Any: what a loop takes for a coroutine need be none of Python's own, and a wrong argument is refused by the loop only.
"""

from typing import Any


def coroutine_name(coro: Any) -> str:
    """Return what a coroutine is called; one without a name is called by its type."""
    try:
        name: str = coro.__qualname__
    except AttributeError:
        return type(coro).__qualname__
    return name


def close_unused(coro: Any) -> None:
    """Close a coroutine that will not be run, so that nobody warns that it was never awaited."""
    close = getattr(coro, "close", None)
    if callable(close):
        close()
