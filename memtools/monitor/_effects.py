"""What is to be done, said as plain records, so that a thread and a loop can do it each in its own way.

Leaves to others: deciding it (`_relief`), doing it (`_doing`).
"""

from typing import TypeAlias

from memtools.monitor._callbacks import Moment
from memtools.readings import Level
from memtools.records import record


@record
class Tell:
    """Call the callbacks of a moment.

    Attributes:
        moment: which.
        fact: the record that they take; None for `"recycle"`, which takes nothing.
    """

    moment: Moment
    fact: object


@record
class Ascend:
    """Climb the ladder.

    Attributes:
        level: how short memory is.
        stop_below: the use at which to stop, in bytes.
    """

    level: Level
    stop_below: int


Effect: TypeAlias = Tell | Ascend
