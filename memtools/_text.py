"""Show a name that may come from a stranger: nothing in it moves the cursor, colours the screen or turns the line.

Covers: control characters, ANSI escapes and bidirectional marks made visible, how wide a text is on a terminal, cutting
it in the middle. Leaves to others: escaping for HTML (`_html`).
"""

import unicodedata
from typing import Final

# Controls (ANSI escapes begin with one), formats (bidi marks, zero width), surrogates, private use, unassigned,
# separators that end a line.
_HARMFUL: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str) -> str:
    """Return `text` with every character that does more than stand there replaced by its Python escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def width_of(text: str) -> int:
    """Return how many columns a terminal needs for `text`."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def cut(text: str, width: int, *, mark: str = "…") -> str:
    """Return `text` in at most `width` columns, cut in the middle: both ends of a name tell names apart."""
    if width_of(text) <= width:
        return text
    left = max(width - len(mark), 0)
    tail = _fitting(text[::-1], left // 2)[::-1]
    head = _fitting(text, left - width_of(tail))
    return f"{head}{mark}{tail}"


def _shown(character: str) -> str:
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
