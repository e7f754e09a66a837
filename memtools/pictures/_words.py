"""Text that may stand in HTML and SVG, whoever wrote it."""

import re
from html import escape
from typing import Final

# What XML 1.0 has no way to write: one of them, and no browser shows the picture.
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escaped(text: str) -> str:
    """Return `text` for HTML and XML; what cannot be written there becomes a question mark."""
    return escape(_UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text))
