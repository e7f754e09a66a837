"""The longest containers there are, and who holds each: what holds the most, whether it grows or not.

Leaves to others: counting (`_census`), climbing and naming (`_answers`), what each weighs.
"""

import linecache
import sys
from typing import Any

from memtools.heap._census import Growing, census
from memtools.heap._samples import at_addresses, is_weak_inside


def longest(most: int = 5, *, least: int = 1000) -> list[Any]:  # Any: strangers
    """Return the longest containers, the longest first; the caller holds them, and should let go of them soon.

    The insides of weak sets and mappings are left out, and so are tables of the interpreter.

    Args:
        most: how many.
        least: the length from which on a container counts.

    Raises:
        ConfigError: if `least` is no whole number of at least 1.
    """
    counted = census(least=least)
    # More than asked for: some are left out below.
    longer = sorted(counted.containers.items(), key=lambda one: one[1][1], reverse=True)[: 2 * most + 8]
    wanted = {address: Growing(counted.names[cls], 0, length, 0.0, address) for address, (cls, length) in longer}
    found = {id(thing): thing for thing in at_addresses(wanted) if not _is_nobodys(thing)}
    return [found[address] for address in wanted if address in found][:most]


def _is_nobodys(thing: object) -> bool:
    return thing is sys.modules or thing is linecache.cache or is_weak_inside(thing)
