"""End everything that a component owns, the latest first, all of it by one deadline.

Covers: waiting, giving up, what fails on the way, a cancellation in mid-way. Leaves to others: how one thing ends
(`_belongings`).

Whatever happens, each thing is told to end. After the deadline, or a cancellation, it is told and not waited for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, cast

from memtools.lifecycle._belongings import Belonging, Belongings
from memtools.scopes.tasks._abandoning import abandon

_log = logging.getLogger("memtools.lifecycle")

# Turns of the loop that are left to whoever has just been cancelled, beyond the deadline.
_LAST_TURNS: Final = 5
_LAST_TURNS_OF_A_THING: Final = 100  # it may have to end others, each in some turns


class Ending:
    """One shutdown.

    Args:
        name: the component's name.
        grace_s: how long it may take, in seconds; told when something is given up.
        deadline: when it has to be over, in seconds of the loop's clock.
    """

    def __init__(self, name: str, grace_s: float, deadline: float) -> None:
        self._name = name
        self._grace_s = grace_s
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._caller = asyncio.current_task()
        self._cancelled: asyncio.CancelledError | None = None
        self._exit: BaseException | None = None
        self._errors: list[Exception] = []

    async def end_all(self, belongings: Belongings) -> None:
        """End all; never raises."""
        while taken := belongings.take_last():
            if taken[0].end is None:
                await self._end_tasks(taken)
            else:
                await self._end_thing(taken[0])

    def raise_what_failed(self) -> None:
        """Raise what has to be raised.

        Raises:
            SystemExit: or KeyboardInterrupt, when something raised it.
            CancelledError: when the caller was cancelled meanwhile.
            ExceptionGroup: of all other errors.
        """
        errors, first = self._errors, self._exit or self._cancelled
        self._errors, self._cancelled, self._exit = [], None, None
        group = ExceptionGroup(f"{self._name} did not shut down cleanly", errors) if errors else None
        try:
            if first is not None and group is not None:
                _log.error("%s did not shut down cleanly either", self._name, exc_info=group)
            if first is not None:
                raise first
            if group is not None:
                raise group
        finally:
            del errors, first, group  # exception, traceback and this frame would keep each other alive

    async def _end_tasks(self, taken: list[Belonging]) -> None:
        # A task of the component that shuts it down ends by itself.
        labels = {
            cast("asyncio.Future[Any]", belonging.thing): belonging.label
            for belonging in taken
            if belonging.thing is not self._caller
        }
        for future in labels:
            future.cancel()
        left = await self._wait(set(labels), _LAST_TURNS)

        for future, label in labels.items():
            if future not in left:
                self._note_end(future, label)
        if left:
            tasks_left = [task for task in left if isinstance(task, asyncio.Task)]
            abandon(self._name, [(task.get_name(), task) for task in tasks_left], self._grace_s)

    async def _end_thing(self, belonging: Belonging) -> None:
        try:
            ending = belonging.end(self._deadline) if belonging.end is not None else None
        except BaseException as error:
            self._note(error, belonging.label)
            return
        if not isinstance(ending, Awaitable):
            return

        future = asyncio.ensure_future(_awaited(cast("Awaitable[object]", ending)))
        if belonging.is_punctual:
            await self._wait_for_end(future)
            self._note_end(future, belonging.label)
            return
        left = await self._wait({future}, _LAST_TURNS)
        if left:
            future.cancel()
            left = await self._wait({future}, _LAST_TURNS_OF_A_THING)
        if left:
            abandon(self._name, [(belonging.label, future)], self._grace_s)
        if left or future.cancelled():
            text = f"{belonging.label} of {self._name} did not end within {self._grace_s:.1f} s"
            self._note(TimeoutError(text), belonging.label)
        else:
            self._note_end(future, belonging.label)

    async def _wait_for_end(self, future: "asyncio.Future[Any]") -> None:
        # A child has our deadline, and ends some turns of the loop after it at the latest.
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as cancelled:
                self._hurry(cancelled)
                future.cancel()

    async def _wait(self, futures: "set[asyncio.Future[Any]]", turns: int) -> "set[asyncio.Future[Any]]":
        left = futures
        try:
            if futures and (seconds := self._deadline - self._loop.time()) > 0:
                left = (await asyncio.wait(futures, timeout=seconds))[1]
        except asyncio.CancelledError as cancelled:
            self._hurry(cancelled)
        for _ in range(turns):
            left = {future for future in left if not future.done()}
            if not left:
                break
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as cancelled:
                self._hurry(cancelled)
        return {future for future in left if not future.done()}

    def _hurry(self, cancelled: asyncio.CancelledError) -> None:
        # The caller is wanted elsewhere: nothing is waited for any more, but nothing is left out either.
        self._cancelled = cancelled
        self._deadline = self._loop.time()

    def _note_end(self, future: "asyncio.Future[Any]", label: str) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._note(error, label)

    def _note(self, error: BaseException, label: str) -> None:
        if not isinstance(error, Exception):
            self._exit = self._exit or error
            return
        error.add_note(f"while {label} of {self._name} was ended")
        self._errors.append(error)


def _awaited(ending: Awaitable[object]) -> "Coroutine[Any, Any, object]":
    async def wait() -> object:
        return await ending

    return wait()
