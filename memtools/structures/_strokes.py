"""How many items may go at once, so that a long list is shortened without stopping the world.

Covers: the size of the next stroke, from what the last ones took; what is left to do when time has run out.
Leaves to others: the clock, and letting items go (`_bounded_list`).

A stroke moves every item that stays (3 to 4 ms for 10 million) and then lets go of each that goes (20 ns to
microseconds, by what hangs on it). Nobody knows beforehand, so the first stroke is small and the next ones grow.
"""

_FIRST = 256
# Items to be moved for each that goes, at most: below that, all time would go into moving.
_MOVED_PER_ITEM = 4_000
# To move one item, in seconds: five times what was measured. A stroke of heavy items is not taken for one that moves.
_MOVE_S = 2e-9
_MOST = 1 << 18  # the items of one stroke are told to the hook in one list


class Strokes:
    """The strokes by which one list is brought down to `goal` items; it outlives a call that ran out of time.

    Attributes:
        goal: how many items are to stay.
        size: how many may go in the next stroke.
    """

    __slots__ = ("_least", "_move_s", "_took_s", "goal", "size")

    def __init__(self, goal: int, length: int) -> None:
        self.goal = goal
        self._least = length // _MOVED_PER_ITEM + 1
        self.size = max(_FIRST, self._least)
        self._move_s = _MOVE_S  # to move one item, by the stroke that suggests the least
        self._took_s = 0.0

    def has_time(self, left_s: float) -> bool:
        """Whether another stroke would be done within `left_s` seconds, by what the last one took."""
        return self._took_s <= left_s

    def took(self, took_s: float, length: int, whole_s: float) -> None:
        """Learn that a stroke took `took_s` for a list of `length`, in a call that has `whole_s` seconds in all."""
        self._took_s = took_s
        self._move_s = min(self._move_s, took_s / length)
        moving_s = self._move_s * length
        # Where moving alone takes nearly all the time, the items get a quarter of it on top.
        room_s = max(whole_s - moving_s, whole_s / 4)
        if 2 * (took_s - moving_s) <= room_s:
            self._resize(self.size * 2)
        elif took_s - moving_s > room_s:
            self._resize(self.size // 2)

    def _resize(self, size: int) -> None:
        self.size = max(self._least, min(size, _MOST))
