"""What a subclass has added to a structure, for copies and pickles.

A file of its own because lists and caches share it, and neither may import the other.
"""

from typing import Any, TypeAlias, cast

# What `object.__getstate__` returns for an object that has slots: its attributes and its slots. Any: of every kind.
_State: TypeAlias = tuple[dict[str, Any] | None, dict[str, Any]]


def added_state(state: object, own_slots: frozenset[str]) -> object:
    """Return a state of `object.__getstate__` without the structure's own slots; None where nothing is left.

    Args:
        state: what `object.__getstate__` returned.
        own_slots: the names of the slots that a copy fills by itself.
    """
    if not isinstance(state, tuple):
        return state  # no slot is set
    attributes, slots = cast("_State", state)
    added = {name: value for name, value in slots.items() if name not in own_slots}
    return (attributes, added) if added else attributes


def restore_state(copied: Any, state: object) -> None:  # Any: a structure of every class
    """Set the attributes that a subclass has added, as `copy.copy` would."""
    if state is None:
        return
    if hasattr(copied, "__setstate__"):
        copied.__setstate__(state)
        return

    attributes, slots = cast("_State", state if isinstance(state, tuple) else (state, {}))
    if attributes:
        copied.__dict__.update(attributes)
    for name, value in slots.items():
        setattr(copied, name, value)
