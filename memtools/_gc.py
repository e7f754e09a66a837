"""Exempt the existing objects from garbage collection, and undo it.

A full collection visits every container. memtools and its imports have some 25,000, several times as many as a small
program: a program that makes and drops many objects took 1.4 times as long because of them.

A file of its own because only this flag connects the command that freezes with the heap functions that unfreeze.
"""

import gc

_is_frozen = False


def freeze_existing() -> None:
    """Have collections skip the objects that exist now."""
    global _is_frozen
    gc.freeze()
    _is_frozen = True


def unfreeze() -> None:
    """Undo `freeze_existing`, so that collections and heap functions see every object; do nothing without one.

    `gc.unfreeze()` is all or nothing: objects that the program itself froze meanwhile are unfrozen as well.
    """
    global _is_frozen
    if _is_frozen:
        _is_frozen = False
        gc.unfreeze()
