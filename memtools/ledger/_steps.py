"""The steps of a coroutine, from the loop's call to the coroutine and back, where they are not in C.

Covers: what happens at each step, as `native/driver.c` does it. Leaves to others, by calling up: what happens at the
first one and at the end, what is done about budgets (`_driver`).
"""

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from memtools.errors import BudgetExceeded
from memtools.ledger._budget import Budget
from memtools.ledger._current import Slot, active_owner, get_active, give_turn, per_thread
from memtools.ledger._meters import Meter

if TYPE_CHECKING:
    from memtools.ledger._driver import Driven
    from memtools.ledger._owner import Kind, Owner

T = TypeVar("T")


class PureSteps(Generic[T]):
    """The hot half of `Driven`; its arguments and attributes are explained there."""

    __slots__ = (
        "__name__", "__qualname__", "__weakref__",
        "_has_ended", "_inner", "_is_joined", "_meter", "_overrun", "_send", "_steps", "budget", "include_children",
        "is_layered", "joins", "kind", "name", "on_end", "owner", "task",
    )  # fmt: skip

    def __init__(
        self,
        inner: Coroutine[Any, Any, T],
        meter: Meter,
        *,
        name: str | None = None,
        kind: "Kind" = "task",
        budget: Budget | None = None,
        include_children: bool = True,
        is_layered: bool = False,
        on_end: "Callable[[Owner, BaseException | None], object] | None" = None,
        joins: bool = False,
    ) -> None:
        self._steps: float = 0.0  # a float, for the reason given in `_tally`
        self._has_ended = False
        self._is_joined = False
        self._inner = inner
        self._send = inner.send
        self.__qualname__: str = getattr(inner, "__qualname__", type(inner).__qualname__)
        self.__name__: str = getattr(inner, "__name__", self.__qualname__)
        self._meter = meter
        self._overrun: BudgetExceeded | None = None
        self.name: str | None = name
        self.kind: Kind = kind
        self.budget: Budget | None = budget
        self.include_children: bool = include_children
        self.is_layered: bool = is_layered
        self.on_end: Callable[[Owner, BaseException | None], object] | None = on_end
        self.joins: bool = joins
        self.owner: Owner | None = None
        self.task: object | None = None

    def following(self, inner: Coroutine[Any, Any, Any]) -> Self:
        """Return another one, for that coroutine, made as this one was."""
        made = type(self)(
            inner,
            self._meter,
            name=self.name,
            kind=self.kind,
            budget=self.budget,
            include_children=self.include_children,
            is_layered=self.is_layered,
            on_end=self.on_end,
            joins=self.joins,
        )
        if self.__qualname__ != getattr(self._inner, "__qualname__", self.__qualname__):
            made.__name__, made.__qualname__ = self.__name__, self.__qualname__  # names that it was given
        return made

    def send(self, value: Any) -> Any:
        """Run one step."""
        if self.joins and not self._steps and self._join():
            self._is_joined = True
            self._steps = 1.0
        if self._is_joined:
            return self._run_joined(self._send, value)

        slot = per_thread.slot
        before, driver_before = slot.owner, slot.driver
        slot.driver = cast("Driven[Any]", self)
        try:
            if self._steps:
                self._resume(slot)
            else:
                self._steps = 1.0
                self._begin(slot)
            result = self._send(value) if self._overrun is None else self._stop()
        except StopIteration:
            self._end(before, None)
            raise
        except BaseException as error:
            self._end(before, error)
            raise
        finally:
            slot.driver = driver_before

        self._suspend(slot, before)
        return result

    def throw(self, kind: Any, error: Any = None, trace: TracebackType | None = None) -> Any:
        """Throw into the coroutine, inside a charged step; cancellation passes through here."""
        if self.joins and not self._steps:
            self._is_joined = True  # it will never begin, so nobody is charged
            self._steps = 1.0
        if self._is_joined:
            thrown = (kind,) if error is None else (kind, error, trace)
            del kind, error, trace  # the same as below
            return self._run_joined(self._inner.throw, *thrown)

        slot = per_thread.slot
        before, driver_before = slot.owner, slot.driver
        slot.driver = cast("Driven[Any]", self)
        try:
            if self._steps:
                self._resume(slot)
            else:
                self._steps = 1.0
                self._begin(slot)
            # One argument wherever possible: the other signature is deprecated since 3.12.
            result = self._inner.throw(kind) if error is None else self._inner.throw(kind, error, trace)
        except StopIteration:
            self._end(before, None)
            raise
        except BaseException as end:
            self._end(before, end)
            raise
        finally:
            slot.driver = driver_before
            kind = error = trace = None  # or traceback, this frame and the exception would keep each other alive

        self._suspend(slot, before)
        return result

    def __del__(self) -> None:
        # As a coroutine does: who is dropped while suspended is closed. Otherwise its owner would stay open for ever.
        if self._steps and not self._has_ended:
            self.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return cast("Generator[Any, Any, T]", self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def _run_joined(self, step: "Callable[..., Any]", *args: Any) -> Any:
        # A step that is another driver's.
        try:
            return step(*args)
        except StopIteration:
            self._end(None, None)
            raise
        except BaseException as error:
            self._end(None, error)
            raise
        finally:
            del args  # or a traceback, this frame and the exception would keep each other alive

    def _join(self) -> bool:
        raise NotImplementedError

    def _begin(self, slot: Slot) -> None:
        raise NotImplementedError

    def _end(self, before: "Owner | None", error: BaseException | None) -> None:
        raise NotImplementedError

    def _check_budgets(self, innermost: "Owner") -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close the coroutine."""
        raise NotImplementedError

    def _resume(self, slot: Slot) -> None:
        self._steps += 1.0
        owner = get_active()
        if owner is not None and owner.ended:
            owner = active_owner()
        charged = owner.charged if owner is not None else None
        if slot.owner is None and charged is not None and not charged.detached:
            charged.meter.switch(slot, charged)  # what `give_turn` comes to, nearly always
        else:
            give_turn(slot, charged)

    def _suspend(self, slot: Slot, before: "Owner | None") -> None:
        after = slot.owner
        if before is None and after is not None:
            after.meter.switch(slot, None)  # as above
        else:
            give_turn(slot, before)
        owner = get_active()
        if owner is not None and owner.budgeted is not None:
            self._check_budgets(owner.budgeted)

    def _stop(self) -> Any:
        overrun, self._overrun = self._overrun, None
        try:
            return self._inner.throw(cast("BudgetExceeded", overrun))
        finally:
            del overrun  # the same as in `throw`
