"""How far it is, on a terminal: one line that is written over, and gone at the end."""

import sys
from typing import Final

_CLEAR: Final = "\r\x1b[K"  # to the begin of the line, and nothing after it


class Progress:
    """One line on standard error; nothing where that is no terminal.

    Args:
        is_wanted: False for nothing at all.
    """

    def __init__(self, *, is_wanted: bool) -> None:
        stream = sys.stderr
        self._stream = stream if is_wanted and stream is not None and stream.isatty() else None

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees it."""
        return self._stream is not None

    def show(self, text: str) -> None:
        """Show `text` in place of what was there."""
        if self._stream is not None:
            self._write(f"{_CLEAR}{text} ")

    def end(self) -> None:
        """Leave an empty line."""
        if self._stream is not None:
            self._write(_CLEAR)
            self._stream = None

    def _write(self, text: str) -> None:
        assert self._stream is not None  # both callers have asked
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # the terminal is gone, the work goes on
