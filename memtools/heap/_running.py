"""Which variable of a function that runs now holds an object.

The collector does not see the variables of running functions (their frames belong to it only once they have ended), so
a climb ends below them without a root.
"""

import sys
from types import FrameType

from memtools.heap._naming import locals_of, name_thing


def variable_of_running_frame(thing: object) -> str:
    """Return the function and the variable, of any thread, that holds `thing`; empty if none does."""
    for frame in list(sys._current_frames().values()):  # pyright: ignore[reportPrivateUsage]  # documented
        above: FrameType | None = frame
        while above is not None:
            if not above.f_code.co_filename.startswith(_ROOM):
                name = next((name for name, value in locals_of(above) if value is thing), None)
                if name is not None:
                    return f"{name_thing(above)}, variable {name}"
            above = above.f_back
    return ""


_ROOM = __file__.rpartition("_running")[0]
