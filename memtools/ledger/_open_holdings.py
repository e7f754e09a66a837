"""How much of what an account's owners hold is held by open ones: the rest is what ended ones have left.

Covers: for each account the bytes of its open owners, and of those that outlived an owner of it. Leaves to others: what
all hold together (`_accounts`), what one holds (the meters).
"""

from collections.abc import Iterable

from memtools.ledger._owner import Owner


def held_by_open(owners: Iterable[Owner]) -> dict[int, int]:
    """Return the live bytes of open owners, by the id of each account in whose figures they are.

    Owners whose meter does not know are left out.
    """
    held: dict[int, int] = {}
    for owner in owners:
        live = None if owner.nested else owner.meter.left_alive(owner)
        if live is None:
            continue
        # Up to the account of the one above, whose own figure has these bytes already. Accounts in between are of
        # owners that have ended before this one: it is no leak of theirs as long as it is open.
        above = _nearest_open(owner)
        account = owner.account
        while account.parent is not None and (above is None or account is not above.account):
            held[id(account)] = held.get(id(account), 0) + live
            account = account.parent
    return held


def _nearest_open(owner: Owner) -> Owner | None:
    above = owner.parent
    while above is not None and (above.ended or above.adrift or above.meter is not owner.meter):
        above = above.parent
    return above
