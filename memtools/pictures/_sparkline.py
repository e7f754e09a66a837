"""A row of characters that goes up and down as figures do."""

from collections.abc import Sequence
from typing import Final

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_PLAIN: Final = "_.-:=+*#"


def sparkline(values: Sequence[float], *, width: int = 40, ascii_only: bool = False, least_span: float = 0.0) -> str:
    """Return one character for each value, or for the highest of several where there are more than `width`.

    Args:
        values: figures in any unit; none gives an empty text.
        width: the most characters.
        ascii_only: use characters that every terminal has.
        least_span: the least difference between the lowest and the highest character.
    """
    if not values:
        return ""
    heights = _columns(values, max(width, 1))
    marks = _PLAIN if ascii_only else _BLOCKS
    low = min(heights)
    span = max(max(heights) - low, least_span)
    if span <= 0:
        return marks[0] * len(heights)
    return "".join(marks[min(int((height - low) / span * len(marks)), len(marks) - 1)] for height in heights)


def _columns(values: Sequence[float], width: int) -> list[float]:
    count = len(values)
    if count <= width:
        return list(values)
    return [max(values[place * count // width : (place + 1) * count // width]) for place in range(width)]
