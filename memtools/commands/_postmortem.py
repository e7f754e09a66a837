"""`memtools postmortem`: what a black box says of a process that was killed; all boxes of a folder.

A file of its own because each command is one.
"""

import json
import os
import sys
from typing import Final

from memtools._text import printable
from memtools.black_box import PostMortem, read_black_box
from memtools.black_box._folder import boxes_in
from memtools.reports._text import can_show_blocks

_MAX_LISTED: Final = 20


def print_postmortem(path: str, *, as_json: bool) -> int:
    """Print what the file, or each file of the folder, says; return the exit code.

    Args:
        path: a file, or a folder.
        as_json: whether to print JSON: an object for a file, a list for a folder.
    """
    try:
        if os.path.isdir(path):
            return _print_folder(path, as_json)
        found = read_black_box(path)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"memtools postmortem: {printable(str(error))}\n")
        return 1
    sys.stdout.write(_as_json(found.to_dict()) if as_json else _as_text(found))
    return 0


def _print_folder(folder: str, as_json: bool) -> int:
    found: list[PostMortem] = []
    for box in boxes_in(folder):
        try:
            found.append(read_black_box(box.path))
        except (OSError, ValueError) as error:  # one file may be anything, and the others are read
            sys.stderr.write(f"memtools postmortem: {printable(str(error))}\n")
    if as_json:
        sys.stdout.write(_as_json([each.to_dict() for each in found]))
        return 0 if found else 1
    if not found:
        sys.stderr.write(f"memtools postmortem: there is no black box in {printable(folder)}\n")
        return 1
    # The newest that was killed is what the reader has come for: all of it, and a line for each of the others.
    told = next((each for each in found if each.verdict not in ("alive", "ended")), found[0])
    sys.stdout.write(_as_text(told))
    others = [each for each in found if each is not told]
    if others:
        sys.stdout.write("\nother boxes in this folder, the newest first:\n")
        for each in others[:_MAX_LISTED]:
            sys.stdout.write(f"  {printable(os.path.basename(each.path))}: {each.summary}\n")
        if len(others) > _MAX_LISTED:
            sys.stdout.write(f"  and {len(others) - _MAX_LISTED} more\n")
    return 0


def _as_json(found: object) -> str:
    return json.dumps(found, indent=2) + "\n"


def _as_text(found: PostMortem) -> str:
    return found.text(ascii_only=not can_show_blocks(sys.stdout.encoding or "ascii")) + "\n"
