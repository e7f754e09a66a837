"""`memory_scope`: measure, name and limit a block of code."""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import ParamSpec, Self, TypeVar, cast

from memtools.errors import ConfigError, ScopeClosed
from memtools.ledger import Budget, Owner, Usage, choose_meter
from memtools.ledger._ledger import close_owner, current_usage, open_for_frame
from memtools.ledger._owner import Inexact, OnExceed
from memtools.scopes._budgets import check_usage, make_budget, parse_budget, require_refusals
from memtools.scopes._calls import CallOptions
from memtools.scopes._functions import wrap_function

P = ParamSpec("P")
R = TypeVar("R")


def parse_name(name: object, *, argument: str = "name") -> str:
    """Return `name`, which has to be text that is not empty.

    Args:
        name: the name of a scope, function or component.
        argument: the argument that it was given for, for the error.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(argument, name, "text that is not empty")
    return name


class memory_scope:  # noqa: N801  # a context manager that reads like a word, as `contextlib.suppress`
    """Charge the memory of a block of code to a name.

    ```python
    with memory_scope("import", warn="50 MiB") as scope:
        rows = [line.split(",") for line in ["a,b"] * 1000]
    print(scope.usage)
    ```

    Scopes form a tree: the parent is the scope, call or task that is current where this scope is entered. Tasks that
    are started inside belong to it. One object can be entered again after it has ended; as a decorator it opens a new
    scope for each call.

    Args:
        name: the name in reports.
        warn: size in bytes or as text (`"50 MiB"`, `"10%"` of the effective limit); a higher peak is logged as a
            warning with the three largest children, and emitted as `HighUsage`.
        budget: the highest peak that is allowed, in the same forms. It is checked at the end of the block, after each
            step of a tracked task, and with the native meter also while a step runs (see `docs/ledger.md`).
        on_exceed: `"raise"` (BudgetExceeded); `"deny"` (the same, but a single large block that would exceed the budget
            is refused: a `MemoryError` where the block would have been allocated; native meter only); `"warn"`; or a
            callable that gets the error.
        inexact: what follows when a figure that is not exact (`usage.exact` is False) exceeds the budget: `"warn"` (a
            warning in the log, once, with the reason) or `"raise"`.
        include_children: whether the figures include those of the scopes, calls and tasks below.
        inherited: whether tasks, callbacks and threads that get a copy of the context inside the block belong to it.
            False for a block that may start something that outlives it and works for others: a connection pool, a
            service that starts with its first use. Only the code of the block itself is charged then.
        meter: `"native"`, `"tracemalloc"` or `"rss"`; by default `MEMTOOLS_METER`, else `"native"` where it was built,
            else `"rss"`.

    Raises:
        ConfigError: at construction, for an invalid argument, and for `"deny"` without the native meter; on entry, for
            `"deny"` where the block cannot be tracked.
        BudgetExceeded: at the end of the block, unless the block raises another exception.

    Threads: a scope is entered and left in one thread; its name and figures can be read in any.
    """

    __slots__ = ("_budget", "_include_children", "_inherited", "_meter", "_owner", "_warn_bytes", "name")

    def __init__(
        self,
        name: str,
        *,
        warn: int | str | None = None,
        budget: int | str | None = None,
        on_exceed: OnExceed = "raise",
        inexact: Inexact = "warn",
        include_children: bool = True,
        inherited: bool = True,
        meter: str | None = None,
    ) -> None:
        self.name: str = parse_name(name)
        self._warn_bytes = None if warn is None else parse_budget(warn, name="warn")
        self._budget: Budget | None = (
            None if budget is None else make_budget(budget, on_exceed=on_exceed, inexact=inexact)
        )
        self._include_children = include_children
        self._inherited = inherited
        self._meter = choose_meter(meter)
        require_refusals(self._meter, self._budget)
        self._owner: Owner | None = None

    @property
    def owner(self) -> Owner:
        """The owner that is charged.

        Raises:
            ScopeClosed: before the scope is entered.
        """
        if self._owner is None:
            raise ScopeClosed(self.name, "it has not been entered")
        return self._owner

    @property
    def usage(self) -> Usage:
        """The usage of the block so far; after the block, its final usage.

        Raises:
            ScopeClosed: before the scope is entered.
        """
        return current_usage(self.owner)

    def __enter__(self) -> Self:
        if self._owner is not None and self._owner.is_active:
            raise ScopeClosed(self.name, "it has been entered already")
        self._owner = open_for_frame(
            self.name,
            "scope",
            sys._getframe(1),  # pyright: ignore[reportPrivateUsage]  # documented for CPython
            meter=self._meter,
            include_children=self._include_children,
            budget=self._budget,
            inherited=self._inherited,
        )
        if self._owner.note and self._budget is not None and self._budget.on_exceed == "deny":
            note = self._owner.note
            close_owner(self._owner, failed=True)
            raise ConfigError("on_exceed", "deny", f"requires a block that can be tracked ({note})")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_owner(self.owner, failed=error is not None)
        _check_usage(self._warn_bytes, self.owner, error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_owner(self.owner, failed=error is not None)
        _check_usage(self._warn_bytes, self.owner, error)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function each call of which is a scope of this name.

        Raises:
            ConfigError: for an object that is not a Python function, for an asynchronous generator function, which
                `profile_memory` accepts, and for a scope that is not inherited.
        """
        if not self._inherited:
            raise ConfigError("inherited", False, "True for a decorator; a `with` block accepts both")
        flags = getattr(getattr(function, "__code__", None), "co_flags", None)
        if flags is None or flags & inspect.CO_ASYNC_GENERATOR:
            raise ConfigError("function", function, "a function, generator function or coroutine function")
        options = CallOptions(
            self.name,
            "scope",
            self._meter,
            self._budget,
            self._include_children,
            on_end=partial(_check_usage, self._warn_bytes),
        )
        return cast("Callable[P, R]", wrap_function(function, options))

    def __repr__(self) -> str:
        state = "not entered" if self._owner is None else "open" if self._owner.is_active else "ended"
        return f"<memory_scope {self.name!r} {state}>"


def _check_usage(warn_bytes: int | None, owner: Owner, error: BaseException | None) -> None:
    check_usage(owner, current_usage(owner), warn_bytes=warn_bytes, failed=error is not None, error=error)
