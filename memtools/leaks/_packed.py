"""Keep a count of the heap between two looks in a handful of blocks.

A `Census` of a large program is some ten thousand small objects: keeping three of them would look like a leak to the
counters that look on. Addresses and numbers go into arrays, names into one dict for all counts.
"""

from array import array

from memtools.heap import Census


class Names(dict[int, str]):
    """Names of types by address; a type of its own, so that it is known for ours."""

    __slots__ = ()


class PackedCensus:
    """One count, packed.

    Args:
        count: the count.
        names: where the names of its types are remembered.
    """

    __slots__ = ("_at", "_containers", "_names", "_objects", "_types")

    def __init__(self, count: Census, names: Names) -> None:
        self._containers = tuple(
            array("Q", column)
            for column in (
                count.containers.keys(),
                (kind for kind, _ in count.containers.values()),
                (length for _, length in count.containers.values()),
            )
        )
        self._types = (array("Q", count.types.keys()), array("Q", count.types.values()))
        self._objects = count.objects
        self._at = count.at
        self._names = names
        names.update(count.names)

    def unpack(self) -> Census:
        """Return the count as it was."""
        addresses, kinds, lengths = self._containers
        return Census(
            dict(zip(addresses, zip(kinds, lengths, strict=True), strict=True)),
            dict(zip(*self._types, strict=True)),
            dict(self._names),
            self._objects,
            self._at,
        )
