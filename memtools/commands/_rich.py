"""Lines in colours on a screen of their own, by rich (the extra `top`).

A file of its own because no other file imports rich.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from memtools.commands._screen import Line, encodable

_STYLES: Final = {"heading": "bold", "bad": "bold red", "doubt": "yellow", "faint": "dim", "good": "green"}


class RichScreen:
    """A terminal whose former content comes back at the end. Without colours where `NO_COLOR` is set."""

    def __init__(self) -> None:
        console = Console(highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def show(self, lines: Sequence[Line]) -> None:
        """Show these lines in place of those before."""
        text = Text(no_wrap=True, overflow="crop", end="")
        for place, (line, kind) in enumerate(lines):
            text.append(("\n" if place else "") + encodable(line), _STYLES.get(kind))
        self._live.update(text, refresh=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)
