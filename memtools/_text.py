"""Text from outside made safe to print, and measured and truncated in terminal columns.

A name may come from a request or from a file: no character in it may move the cursor, colour the screen, reverse the
direction of writing or begin a new line in a log.
"""

import unicodedata
from typing import Final

# Controls (ANSI escapes begin with one), formats (bidirectional marks, zero width), surrogates, private use, unassigned,
# separators that end a line.
_HARMFUL: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str, max_length: int | None = None) -> str:
    """Return `text` with every character that does more than take its place replaced by its Python escape.

    Args:
        text: from anywhere.
        max_length: characters of `text` that are kept; the escapes may make the result longer.
    """
    if max_length is not None:
        text = text[:max_length]
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))


def display_width(text: str) -> int:
    """Return how many columns a terminal needs for `text`."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def truncate_middle(text: str, width: int, *, mark: str = "…") -> str:
    """Return `text` in at most `width` columns; the middle is left out, since both ends tell names apart."""
    if display_width(text) <= width:
        return text
    left = max(width - len(mark), 0)
    tail = _fitting(text[::-1], left // 2)[::-1]
    head = _fitting(text, left - display_width(tail))
    return f"{head}{mark}{tail}"


def _escaped(character: str) -> str:
    if unicodedata.category(character) in _HARMFUL:
        return character.encode("unicode_escape").decode("ascii")
    return character


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitting(text: str, width: int) -> str:
    used = 0
    for place, character in enumerate(text):
        used += _columns(character)
        if used > width:
            return text[:place]
    return text
