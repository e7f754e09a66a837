"""Printable text, and its width and truncation in terminal columns.

A name may come from a request or a file: no character in it may move the cursor, colour the screen, reverse the
direction of writing or start a new line in a log.

A file of its own because reports, alerts, the monitor and the ledger all print such names.
"""

from typing import Final

# Control characters (ANSI escape sequences start with one), format characters (bidirectional marks, zero width),
# surrogates, private use, unassigned, and separators that end a line.
_HARMFUL: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str, max_length: int | None = None) -> str:
    """Return `text` with every character that is not simply shown replaced by its Python escape.

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
    """Return `text` in at most `width` columns, without its middle: both ends are needed to tell names apart."""
    if display_width(text) <= width:
        return text
    left = max(width - len(mark), 0)
    tail = _fitting(text[::-1], left // 2)[::-1]
    head = _fitting(text, left - display_width(tail))
    return f"{head}{mark}{tail}"


def _escaped(character: str) -> str:
    from unicodedata import category  # a C extension that ASCII names, nearly all, do not need

    if category(character) in _HARMFUL:
        return character.encode("unicode_escape").decode("ascii")
    return character


def _columns(character: str) -> int:
    from unicodedata import combining, east_asian_width  # as above

    if combining(character):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def _fitting(text: str, width: int) -> str:
    used = 0
    for place, character in enumerate(text):
        used += _columns(character)
        if used > width:
            return text[:place]
    return text
