"""Carry out what was decided, here and now or on a loop.

Leaves to others: deciding it (`_relief`), the ladder (`memtools.cleanup`), running one callback (`_calling`).
"""

from collections.abc import Iterator

from memtools.cleanup import Climb, Ladder
from memtools.monitor._callbacks import Callback, Callbacks
from memtools.monitor._calling import Caller
from memtools.monitor._effects import Ascend, Effect, Tell
from memtools.monitor._relief import Response


class Doer:
    """Does what a response asks for; what goes wrong in a callback stays there."""

    def __init__(self, ladder: Ladder, callbacks: Callbacks, caller: Caller) -> None:
        self._ladder = ladder
        self._callbacks = callbacks
        self._caller = caller

    def carry_out(self, response: Response, *, aside: bool = False) -> None:
        """Do it all before returning; callbacks `aside` in threads of their own, with a time limit."""
        answer: Climb | None = None
        try:
            while (effect := _next(response, answer)) is not None:
                answer = None
                if isinstance(effect, Ascend):
                    answer = self._climb(effect)
                    continue
                for callback, argument in self._calls(effect):
                    self._caller.call(callback, argument, aside=aside)
        finally:
            response.close()

    async def carry_out_on_loop(self, response: Response) -> None:
        """Do it, and let the loop have its turns in between."""
        answer: Climb | None = None
        try:
            while (effect := _next(response, answer)) is not None:
                answer = None
                if isinstance(effect, Ascend):
                    answer = await self._climb_on_loop(effect)
                    continue
                for callback, argument in self._calls(effect):
                    await self._caller.call_on_loop(callback, argument)
        finally:
            response.close()

    def _calls(self, effect: Tell) -> Iterator[tuple[Callback, tuple[object, ...]]]:
        argument = () if effect.fact is None else (effect.fact,)
        for callback in self._callbacks.at(effect.moment):
            if self._callbacks.is_known(callback):  # an earlier one may have removed it
                yield callback, argument

    def _climb(self, effect: Ascend) -> Climb | None:
        try:
            return self._ladder.climb(effect.level, effect.stop_below)
        except OSError:  # no reading in the middle of the climb; the next beat tries again
            return None

    async def _climb_on_loop(self, effect: Ascend) -> Climb | None:
        try:
            return await self._ladder.climb_async(effect.level, effect.stop_below)
        except OSError:
            return None


def _next(response: Response, answer: Climb | None) -> Effect | None:
    try:
        return response.send(answer)
    except StopIteration:
        return None
