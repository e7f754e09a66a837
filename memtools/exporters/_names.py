"""Keep the names that become label values few: each of them is a time series for as long as the server remembers it.

Leaves to others: which names there are (`_aggregates`), escaping them (the exposition format).
"""

import logging
from typing import Final

from memtools.units import parse_count

MOST_NAMES: Final = 100
OTHER: Final = "<other>"

_log = logging.getLogger("memtools.exporters")


class Names:
    """The first `most` names that come keep their own label; all later ones share `<other>`.

    A name that has got its label keeps it, so that counters only rise. The caller sees to threads.

    Args:
        most: how many names get a label of their own.

    Raises:
        ConfigError: for less than one name.
    """

    __slots__ = ("_known", "_most", "_warned")

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = parse_count(most, name="most_names")
        self._known: set[str] = set()
        self._warned = False

    def label(self, name: str) -> str:
        """Return the label value for `name`."""
        if name in self._known:
            return name
        if name == OTHER:
            return OTHER
        if len(self._known) < self._most:
            self._known.add(name)
            return name

        if not self._warned:
            self._warned = True
            _log.warning(
                "more than %d names of scopes, calls and tasks: the figures of the further ones are exported as %s; "
                "name a scope after what it does, not after whom it does it for",
                self._most,
                OTHER,
            )
        return OTHER
