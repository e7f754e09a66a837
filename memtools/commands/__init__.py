"""The commands of `python -m memtools`."""

from memtools.commands._main import main

__all__ = ["main"]
