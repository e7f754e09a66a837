"""The door for `python -m memtools`; everything else is in `memtools.commands`."""

import sys

from memtools.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
