"""What `python -m memtools` can be told to do."""

from memtools.commands._main import main

__all__ = ["main"]
