"""The entry point of `python -m memtools`.

A file of its own because Python runs the module of this name.
"""

import sys

from memtools.commands._main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
