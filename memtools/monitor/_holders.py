"""Which owners hold the most.

Leaves to others: who owns what (`memtools.ledger`), plain containers that nobody owns (`_containers`).
"""

from memtools.ledger import Entry, open_owners, statistics
from memtools.records import record


@record
class Holder:
    """An owner, or the owners of one account together.

    Attributes:
        name: names from the outermost owner down, joined by ` > `.
        kind: `"scope"`, `"call"` or `"task"`.
        live_bytes: what is alive of it now, as far as its meter knows.
        active: how many of them are open.
        calls: how many there were.
        retained_bytes: what was alive of each at its end, added up, and what the open ones hold.
    """

    name: str
    kind: str
    live_bytes: int
    active: int
    calls: int
    retained_bytes: int


def holders() -> tuple[Holder, ...]:
    """Return all accounts of the process that hold or retained anything, the one that holds most first."""
    live: dict[tuple[str, ...], int] = {}
    for owner in open_owners():
        live[owner.path] = live.get(owner.path, 0) + max(0, owner.live_bytes)
    found: list[Holder] = []
    for entry in statistics().accounts:
        _collect(entry, (), live, found)
    return tuple(sorted(found, key=lambda holder: (holder.live_bytes, holder.retained_bytes), reverse=True))


def largest_owners(most: int) -> tuple[tuple[str, int], ...]:
    """Return up to `most` owners with the most live bytes, as (name, bytes).

    An owner's bytes include those of the owners below it.
    """
    return tuple((holder.name, holder.live_bytes) for holder in holders()[:most] if holder.live_bytes > 0)


def _collect(entry: Entry, above: tuple[str, ...], live: dict[tuple[str, ...], int], found: list[Holder]) -> None:
    path = (*above, entry.name)
    # The native meter knows what all owners of an account have made that lives; of the others only open ones are known.
    held = live.get(path, 0) if entry.live_bytes is None else entry.live_bytes
    if held > 0 or entry.retained_bytes > 0:
        found.append(Holder(" > ".join(path), entry.kind, held, entry.active, entry.entered, entry.retained_bytes))
    for child in entry.children:
        _collect(child, path, live, found)
