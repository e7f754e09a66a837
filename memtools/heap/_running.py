"""Which variable of a function that runs now holds an object.

The collector does not see the variables of running functions (their frames belong to it only once they have ended), so
a climb ends below them without a root.
"""

import sys

from memtools.heap._naming import locals_of, name_thing


def variable_of_running_frame(thing: object) -> str:
    """Return the function and the variable, of any thread, that holds `thing`; empty if none does."""
    frames = list(sys._current_frames().values())  # pyright: ignore[reportPrivateUsage]  # documented
    frame = None
    try:
        while frames:
            frame = frames.pop()
            frames += [frame.f_back] if frame.f_back is not None else []
            if frame.f_code.co_filename.startswith(_ROOM):
                continue
            name = next((name for name, value in locals_of(frame) if value is thing), None)
            if name is not None:
                return f"{name_thing(frame)}, variable {name}"
        return ""
    finally:
        del frames, frame  # one of them is this one: they would keep each other alive, and `thing`


_ROOM = __file__.rpartition("_running")[0]
