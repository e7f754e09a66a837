"""The commands of `python -m memtools`."""
