"""What a chart shows: panels above each other over one axis.

Leaves to others: how it is drawn (`_svg`), where the marks of an axis stand (`_scale`).
"""

from typing import Literal, TypeAlias

from memtools.pictures._scale import BYTES, Scale
from memtools.records import record

Tone: TypeAlias = Literal["plain", "good", "bad", "doubtful"]


@record
class Line:
    """One line of a panel.

    Attributes:
        name: what it is called beside its last point.
        values: one for each place of the chart, in the unit of the panel's scale; NaN where there is none.
    """

    name: str
    values: tuple[float, ...]


@record
class Panel:
    """One field of a chart, with an upright axis of its own.

    Attributes:
        title: what stands above it.
        lines: what is drawn.
        scale: the unit of its values.
        least_span: the least difference that the axis shows from bottom to top: noise shall not look like growth.
        from_zero: whether the axis begins at 0.
    """

    title: str
    lines: tuple[Line, ...]
    scale: Scale = BYTES
    least_span: float = 0.0
    from_zero: bool = False


@record
class Chart:
    """Panels above each other.

    Attributes:
        title: what stands above them.
        tone: how the title is to be taken.
        notes: lines below the title.
        axis: what the places count.
        places: where the points stand on the level axis, rising.
        panels: from top to bottom.
    """

    title: str
    tone: Tone
    notes: tuple[str, ...]
    axis: str
    places: tuple[float, ...]
    panels: tuple[Panel, ...]
