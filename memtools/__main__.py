"""The entry point of `python -m memtools`.

A file of its own because Python runs the module of this name.
"""

import sys

from memtools.commands._main import main

if __name__ == "__main__":
    _code = main(sys.argv[1:])
    if _code:
        sys.exit(_code)  # not where it is 0: `python -i` would show a SystemExit
