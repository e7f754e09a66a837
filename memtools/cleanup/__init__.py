"""Things that can give memory back, and who they are."""

from memtools.cleanup._register import Shrinkable, register, registered, unregister

__all__ = [
    "Shrinkable",
    "register",
    "registered",
    "unregister",
]
