"""The quick way to open and end an owner that is like many before it: in C (`native/book.c`), or there is none.

Leaves to others: what is to be done for an owner, the quick way or the long one (`_book`).
"""

from typing import TYPE_CHECKING, Any

from memtools.ledger._seats import native_seats

if TYPE_CHECKING:
    from memtools.ledger._accounts import Account
    from memtools.ledger._driver import Driven
    from memtools.ledger._meters import Meter
    from memtools.ledger._owner import Kind, Owner

# ruff: noqa: ARG001  # the signatures are those in C


_native = native_seats()
if TYPE_CHECKING or _native is None:
    # Any: whatever a coroutine returns, and what the book is written with.

    def open_plain(
        meter: "Meter", kind: "Kind", name: str, include_children: bool, driver: "Driven[Any] | None", /
    ) -> "Owner | None":
        """Open an owner of the native meter below the active one; return None, and do nothing, if it is not plain."""

    def settle_plain(owner: "Owner", failed: bool, back: "Owner | None", /) -> bool:
        """End an owner of the native meter and tell; return False, and do nothing, if it is not plain."""
        return False

    def keep_book(*books: Any) -> None:
        """Say where the books are, and who is told of what is rare."""

    def keep_root(root: "Account", /) -> None:
        """Say which account is above all others."""

else:
    open_plain = _native.open_plain
    settle_plain = _native.settle_plain
    keep_book = _native.keep_book
    keep_root = _native.keep_root
