"""Charge a request for the tasks that serve it.

Frameworks stream bodies, and wait for clients that go away, in tasks of their own: Starlette does on every server that
speaks ASGI before 2.4. Such a task inherits whose it is, but what it allocates is charged to that one only if somebody
follows its steps. `memtools.install` does so for every task of a loop, with an account for each; here it is done for
the tasks that requests start, and they have no accounts.

Leaves to others: following (`memtools.ledger`). Whatever made the tasks before goes on making them.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from memtools.ledger import Driven, active_owner, can_be_driven

if TYPE_CHECKING:
    import asyncio

serves_request: Final[ContextVar[bool]] = ContextVar("memtools_serves_request", default=False)

_asked: "WeakSet[asyncio.AbstractEventLoop]" = WeakSet()


def follow_tasks_of_requests() -> None:
    """Have tasks followed that are started, in the loop that runs here, where `serves_request` is set.

    Sets a task factory, once for each loop. Without a loop of asyncio nothing happens.
    """
    module = sys.modules.get("asyncio")
    loop: asyncio.AbstractEventLoop | None = module._get_running_loop() if module is not None else None
    if loop is None or loop in _asked:
        return
    _asked.add(loop)
    loop.set_task_factory(_Factory(loop.get_task_factory()))


class _Factory:
    """Makes tasks as before, those of requests with a driver around their coroutine. Any: as in asyncio itself."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Callable[..., Any] | None) -> None:
        self._inner = inner

    def __call__(self, loop: Any, coro: Any, **options: Any) -> Any:
        if serves_request.get() and can_be_driven(coro):
            owner = active_owner()
            if owner is not None and owner.meter.follows:
                coro = Driven[Any](coro, owner.meter)
        if self._inner is not None:
            return self._inner(loop, coro, **options)
        return sys.modules["asyncio"].Task(coro, loop=loop, **options)
