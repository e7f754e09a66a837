"""Containers that cannot grow without end."""

from memtools.structures._bounded_list import BoundedList, BoundedListStatistics

__all__ = [
    "BoundedList",
    "BoundedListStatistics",
]
