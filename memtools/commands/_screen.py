"""Tables of figures on a terminal that refresh: aligned, cut to its width, with keys where there is a keyboard."""

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias

from memtools._text import display_width, truncate_middle

if sys.platform != "win32":
    import termios
    import tty

Line: TypeAlias = tuple[str, str]  # a text, and how it looks: `heading`, `bad`, `doubt`, `faint` or nothing

_HOME_AND_CLEAR: Final = "\x1b[H\x1b[J"
_GAP: Final = "  "


class Screen(Protocol):
    """Where lines are shown, again and again."""

    def show(self, lines: Sequence[Line]) -> None:
        """Show these lines in place of those before."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainScreen:
    """A terminal, or a pipe, that gets nothing but the lines.

    Args:
        clears: whether the lines before are wiped off.
    """

    def __init__(self, *, clears: bool) -> None:
        self._clears = clears

    def show(self, lines: Sequence[Line]) -> None:
        """Write the lines; a pipe gets them one below the other."""
        text = "\n".join(line for line, _ in lines)
        sys.stdout.write(f"{_HOME_AND_CLEAR if self._clears else ''}{encodable(text)}\n")
        sys.stdout.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last lines where they are."""


class Keyboard:
    """The keys that are pressed, without Return; none where standard input is no terminal.

    The terminal is as it was at the end, also after SIGTERM, which ends the command.
    """

    def __init__(self) -> None:
        self._before: Any = None  # Any: the attributes of a terminal
        self._handler: Any = None

    def __enter__(self) -> Self:
        if sys.platform != "win32" and sys.stdin is not None and sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
            self._handler = signal.signal(signal.SIGTERM, _end)
            tty.setcbreak(sys.stdin, termios.TCSADRAIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if sys.platform != "win32" and self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
            signal.signal(signal.SIGTERM, self._handler)
            self._before = None

    def wait(self, seconds: float) -> str:
        """Return the key that is pressed within that time, else nothing."""
        if self._before is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        if not ready:
            return ""
        key = os.read(sys.stdin.fileno(), 1)
        return key.decode("ascii", "replace") if key else "q"  # the terminal is gone


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def aligned(rows: Sequence[Sequence[str]], *, width: int, left: frozenset[int]) -> list[str]:
    """Return rows of cells as lines of columns that are aligned.

    Args:
        rows: the cells, which are printable; all rows have as many.
        width: columns of the terminal; longer lines lose their middle.
        left: the columns whose cells begin at the left; numbers end at the right.
    """
    sizes = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        cells = [
            f"{cell}{pad}" if place in left else f"{pad}{cell}"
            for place, (cell, size) in enumerate(zip(row, sizes, strict=True))
            for pad in [" " * (size - display_width(cell))]
        ]
        lines.append(truncate_middle(_GAP.join(cells).rstrip(), width, mark=ellipsis()))
    return lines


def ellipsis() -> str:
    """Return what stands for a part that is left out, as standard output can show it."""
    return "…" if encodable("…") == "…" else "..."


def encodable(text: str) -> str:
    """Return a text in which escapes stand for the characters that standard output cannot write."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)
