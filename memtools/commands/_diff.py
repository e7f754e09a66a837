"""`memtools diff`: what changed from one report to another, with an exit code for continuous integration.

A file of its own because every command has one.
"""

import json
import sys
from typing import Any, Final, cast

from memtools.errors import ConfigError
from memtools.reports import diff_reports
from memtools.reports._diff import ReportDiff
from memtools.reports._diff_forms import diff_page, diff_text

EXIT_ABOVE: Final = 1
EXIT_UNUSABLE: Final = 2
_STANDARD: Final = "-"


def print_diff(before: str, after: str, *, as_json: bool, html_path: str | None, fail_above: str | None) -> int:
    """Print the difference of two files; return the exit code.

    It is 0; 1 where an owner keeps, or peaks by, more than `fail_above` more than before; and 2 where a file is no
    report, the page cannot be written, or, with `fail_above`, nothing can be compared.

    Args:
        before: the path of the earlier report; `-` is standard input.
        after: the path of the later one.
        as_json: whether to print JSON instead of text.
        html_path: where to write a page as well; `-` is standard output, in place of the text.
        fail_above: a size, or a percentage of what it was before.
    """
    try:
        diff = diff_reports(_read(before), _read(after))
        above = () if fail_above is None else diff.above(fail_above)
        if html_path == _STANDARD:
            sys.stdout.write(diff_page(diff))
        elif html_path is not None:
            with open(html_path, "w", encoding="utf-8", newline="\n") as file:
                file.write(diff_page(diff))
    except (ConfigError, _UnreadableError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot write {html_path}: {error.strerror}")
    if as_json:
        sys.stdout.write(json.dumps({**diff.to_dict(), "above": list(above)}, indent=2) + "\n")
    elif html_path != _STANDARD:
        sys.stdout.write(diff_text(diff) + "\n")
    return 0 if fail_above is None else _verdict(diff, above, fail_above)


class _UnreadableError(Exception):
    """A file that is no report; the message says which and why."""


def _verdict(diff: ReportDiff, above: tuple[str, ...], fail_above: str) -> int:
    if diff.owners and not any(one.is_comparable for one in diff.owners):
        return _fail("no owner can be compared, since the reports were counted by different meters")
    for line in above:
        sys.stderr.write(f"above {fail_above}: {line}\n".encode("ascii", "backslashreplace").decode())
    return EXIT_ABOVE if above else 0


def _read(path: str) -> dict[str, Any]:  # Any: JSON
    try:
        text = sys.stdin.read() if path == _STANDARD else _read_file(path)
        found: object = json.loads(text)
    except OSError as error:
        raise _UnreadableError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _UnreadableError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _UnreadableError(f"{path} is no report of memtools: it holds a JSON {type(found).__name__}")
    return cast("dict[str, Any]", found)


def _read_file(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _fail(message: str) -> int:
    sys.stderr.write(f"memtools: {message}\n".encode("ascii", "backslashreplace").decode())
    return EXIT_UNUSABLE
