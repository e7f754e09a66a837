"""Put the report where it was asked for, after everything that the program has written.

Covers: stderr that is a terminal, a file, a pipe that nobody reads, closed, or replaced; files. Leaves to others: what
the report says (`memtools.reports`).
"""

import json
import os
import sys
from typing import TextIO

from memtools.leaks import Diagnosis
from memtools.reports import Report, can_show_blocks, html_page, visible


def tell(
    report: Report,
    stream: TextIO | None,
    *,
    json_path: str | None,
    html_path: str | None,
    diagnosis: Diagnosis | None = None,
) -> None:
    """Write the report, and the answer about leaks where it was asked for, to `stream` and to the files.

    Raises:
        OSError: when a file cannot be written; the stream has been served then.
    """
    _flush(sys.stdout)
    if stream is not None:
        _write(stream, _as_text(report, stream, diagnosis))
    if json_path is not None:
        _write_file(json_path, _as_json(report, diagnosis))
    if html_path is not None:
        _write_file(html_path, html_page(report))


def _as_json(report: Report, diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return report.to_json() + "\n"
    return json.dumps({**report.to_dict(), "leaks": diagnosis.to_dict()}, indent=2) + "\n"


def _as_text(report: Report, stream: TextIO, diagnosis: Diagnosis | None) -> bytes:
    encoding = getattr(stream, "encoding", None) or "ascii"
    text = report.to_text(width=_width_of(stream), ascii_only=not can_show_blocks(encoding))
    if diagnosis is not None:
        # In full, however wide the terminal is: the end of the line is what to do about it.
        text += "\n\n" + "\n".join(visible(line) for line in diagnosis.lines())
    return f"\n{text}\n".encode(encoding, "backslashreplace")


def _width_of(stream: TextIO) -> int | None:
    if os.environ.get("COLUMNS"):
        return None  # what the report goes by
    try:
        return min(os.get_terminal_size(stream.fileno()).columns, 140)
    except (OSError, ValueError, AttributeError):
        return None


def _write(stream: TextIO, text: bytes) -> None:
    # Past the stream's buffer: what could not be written would stay there, and change the exit code at the final flush.
    try:
        stream.flush()
        number = stream.fileno()
        if not os.get_blocking(number):
            os.set_blocking(number, True)  # the program is over, and half a report helps nobody
        while text:
            text = text[os.write(number, text) :]
    except (OSError, ValueError, AttributeError):  # a pipe that nobody reads; a stream that was closed
        return


def _flush(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError, AttributeError):
        return  # the interpreter flushes again, and says so in the program's name


def _write_file(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
