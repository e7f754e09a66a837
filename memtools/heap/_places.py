"""The line of the program where a holder is made.

Covers: globals, attributes of classes and of instances, by the name that an answer gives them.
Leaves to others: those names (`_naming`).
"""

import linecache
import re
import sys
from types import ModuleType

from memtools.heap._looking import attribute_of, class_of


def line_of(holder: str) -> str:
    """Return `file:line` where a holder such as `shop.Desk.orders` or `shop.registry` is made, empty if not found.

    The file is read as it is now.
    """
    module, names = _module_of(holder.removeprefix("class "))
    if module is None or not 1 <= len(names) <= 2:
        return ""
    name = re.escape(names[-1])
    if len(names) == 1:
        return _search(module, rf"^{name}\s*[:=]")
    return _search(module, rf"^\s+(self\.|cls\.)?{name}\s*[:=]", after=rf"^\s*class {re.escape(names[0])}\b")


def _module_of(holder: str) -> tuple[ModuleType | None, list[str]]:
    parts = holder.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:length]))
        if class_of(module) is ModuleType:
            return module, parts[length:]
    # Classes of the program that was started are named without their module.
    main = sys.modules.get("__main__")
    return (main, parts) if class_of(main) is ModuleType else (None, parts)


def _search(module: ModuleType, pattern: str, *, after: str = "") -> str:
    path = attribute_of(module, "__file__")
    if class_of(path) is not str or not path.endswith(".py"):
        return ""
    is_reached = not after
    for number, line in enumerate(linecache.getlines(path), 1):
        is_reached = is_reached or re.match(after, line) is not None
        if is_reached and re.match(pattern, line):
            return f"{path}:{number}"
    return ""
