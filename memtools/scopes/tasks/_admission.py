"""Let a task start only while there is memory for it.

Covers: what an admission must offer (`Admission`), and the simplest one, a size: tasks start while the scope has used
less than that. Leaves to others: the process's own state (a memory monitor has an `admit()` of this shape).

Whoever admits always lets one in when nobody is in: a task that needs more than there is runs alone, rather than never.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, cast, runtime_checkable

from memtools.errors import ConfigError
from memtools.scopes._judging import parse_limit

if TYPE_CHECKING:
    import asyncio

# Memory also comes back while nobody ends; often enough to notice, too seldom to cost.
LOOK_AGAIN_AFTER_S: Final = 0.05


@runtime_checkable
class Admission(Protocol):
    """Something that makes a task wait until there is memory for it."""

    def admit(self) -> AbstractAsyncContextManager[object]:
        """Return what a task is run inside: entering it waits, leaving it makes room for others."""
        ...


Admit: TypeAlias = Admission | Callable[[], AbstractAsyncContextManager[object]] | int | str


class SizeAdmission:
    """Admit while less than `size_bytes` are used; in order of arrival; one always.

    Args:
        size_bytes: the most that may be used when another task starts.
        used: tells how much is used, in bytes.
    """

    __slots__ = ("_door", "_inside", "_left", "_size_bytes", "_used")

    def __init__(self, size_bytes: int, used: Callable[[], int]) -> None:
        import asyncio  # loaded by whoever runs a loop, not by whoever imports memtools

        self._size_bytes = size_bytes
        self._used = used
        self._inside = 0
        self._door = asyncio.Lock()  # only the first in the row looks, the others wait behind it
        self._left: asyncio.Future[None] | None = None

    def admit(self) -> AbstractAsyncContextManager[object]:
        """Return the way in and out for one task."""
        return _Passage(self)

    async def enter(self) -> None:
        """Wait for room."""
        async with self._door:
            while self._inside and self._used() >= self._size_bytes:
                await self._wait_for_change()
            self._inside += 1

    def leave(self) -> None:
        """Make room, and have the first in the row look again."""
        self._inside -= 1
        if self._left is not None:
            _wake(self._left)

    async def _wait_for_change(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self._left = loop.create_future()
        timer = loop.call_later(LOOK_AGAIN_AFTER_S, _wake, self._left)
        try:
            await self._left
        finally:
            timer.cancel()
            self._left = None


class _Passage:
    __slots__ = ("_admission",)

    def __init__(self, admission: SizeAdmission) -> None:
        self._admission = admission

    async def __aenter__(self) -> None:
        await self._admission.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.leave()


class _Called:
    """A plain callable as an `Admission`: `admit=lambda: monitor.admit("200 MiB")`."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], AbstractAsyncContextManager[object]]) -> None:
        self._function = function

    def admit(self) -> AbstractAsyncContextManager[object]:
        return self._function()


def parse_admission(value: object) -> Admission | int | None:
    """Return an admission, or the bytes of a size.

    Raises:
        ConfigError: for anything else.
    """
    if value is None:
        return None
    if isinstance(value, type):
        raise ConfigError("admit", value, "an object with an admit() method, not its class")
    if callable(getattr(value, "admit", None)):
        return cast("Admission", value)
    if callable(value):
        return _Called(cast("Callable[[], AbstractAsyncContextManager[object]]", value))
    return parse_limit(value, name="admit")


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
