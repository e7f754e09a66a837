"""Put the tasks of one scope under drivers, so that each has an owner of its own.

Covers: one example of a driver per name, from which those of the tasks are made. Leaves to others: following steps
(`memtools.ledger`), the sums by name (`_accounts`).
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from memtools.ledger import UNUSED, Driven, Meter
from memtools.scopes.tasks._accounts import TaskAccounts

Drive: TypeAlias = Callable[[Any], Driven[Any]]  # Any: what a loop and a coroutine exchange is between them


class Drivers:
    """The drivers of the tasks of one scope.

    Args:
        meter: who counts.
        accounts: where the final figures of each task go.

    Attributes:
        follows: whether tasks have owners of their own; else a driver only looks at the scope's budget after each step.
        by_name: what puts a coroutine under a driver; look here first, it costs a dict lookup.
    """

    __slots__ = ("_accounts", "_meter", "by_name", "follows")

    def __init__(self, meter: Meter, accounts: TaskAccounts) -> None:
        self._meter = meter
        self._accounts = accounts
        self.follows = meter.follows
        self.by_name: dict[str, Drive] = {}

    def open(self, name: str) -> Drive:
        """Return what puts coroutines of a name that may be new under a driver."""
        account = self._accounts.by_name.get(name) or self._accounts.open(name)
        drive: Drive = Driven(UNUSED, self._meter, name=name, kind="task", on_end=account.add_ended).following
        if account.name == name:  # those that share an account may be any number
            self.by_name[name] = drive
        return drive

    def drive(self, coro: Coroutine[Any, Any, Any], name: str) -> Driven[Any]:
        """Return a coroutine under its driver."""
        if not self.follows:
            return Driven(coro, self._meter)
        return (self.by_name.get(name) or self.open(name))(coro)
