"""Give an open owner another name: for those who learn only on the way what they are charging.

A web server's request is known by its route, and that is found in the middle of the request. Leaves to others: opening
and ending (`_book`), who asks for it (`memtools.integrations`).

The account of the old name stays, so that the next one who is to be renamed is opened quickly; whoever lists accounts
leaves it out while nobody is counted there.
"""

from memtools.ledger import _book
from memtools.ledger._owner import Owner


def rename_owner(owner: Owner, name: str) -> None:
    """Call an open owner `name` from now on, and count it in the account of that name, from its beginning.

    What was opened below it before stays where it is. Nothing happens to an owner that has ended. Safe from any thread.

    Args:
        owner: who is renamed.
        name: what reports call it; cut and escaped as in `open_owner`.
    """
    name = _book._presentable(name)  # pyright: ignore[reportPrivateUsage]  # its own room
    with _book._lock:  # pyright: ignore[reportPrivateUsage]  # as above; looked up each time, as a fork renews it
        before = owner.account
        if owner.ended or before.parent is None or name == owner.name:
            return
        owner.name = name
        account = owner.account = before.parent.below(owner.kind, name)
        account.meter = owner.meter.name
        for changed, by in ((before, -owner.is_counted), (account, owner.is_counted)):
            changed.entered += by
            changed.active += by
        owner.meter.join(owner)
