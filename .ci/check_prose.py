#!/usr/bin/env python3
"""Check the words of code and docs, and the length of test names.

Usage: `check_prose.py [FOLDER]`. Prints `file:line:word: what to write instead` for each finding, and exits with 1 if
there is any. Comments, docstrings, string literals and identifiers are all read: the words of `parcel_count` and
`ParcelQueue` are found like those of a sentence.
"""
# ruff: noqa: T201  # a script's answer is what it prints

import ast
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Sentences have a real subject: name the thread, the task, the caller, the block or the object.
SUBJECT = "name the thread, task, caller, block or object"

# Words that are retired wherever they stand, with their plural and verb forms.
WORDS = {
    "anybody": SUBJECT,
    "nobody nobodys nobodies": f"{SUBJECT}; of bytes: untracked",
    "somebody somebodys": SUBJECT,
    "theirs": SUBJECT,
    "whoever whomever whosever whosoever": SUBJECT,
    "adrift": "untracked",
    "ascent ascents": "reclaim pass",
    "beat beats beaten": "sampling loop, tick",
    "bell": "eventfd",
    "birthmark birthmarks": "process token",
    "board": "incident tracker",
    "brake brakes": "throttle point",
    "bury buries buried": "purge",
    "ceiling ceilings": "soft limit",
    "climb climbs climbed climbing": "reclaim pass, referrer walk; of a figure: grow, rise",
    "complaint complaints": "rate-limited logger, warning",
    "culprit culprits": "holder, what was left behind",
    "dial dials": "connect",
    "doer": "executor",
    "door doors": "adapter, top-level namespace",
    "feel feels felt": "observe, update",
    "hear hears heard": "receive, received",
    "hire hires hired": "factory",
    "house houses": "package, project",
    "hunt hunts hunting": "leak search",
    "keeper keepers": "engine; of an object: holder",
    "ladder ladders": "reclaimer",
    "lookout": "sampler",
    "mailer": "SMTP client",
    "neighbour neighbours": "other threads, other tasks",
    "outbox": "delivery queue",
    "parcel parcels": "queued message",
    "patience": "retry policy, timeout",
    "payer": "parent account",
    "poster posters": "HTTP client",
    "postman": "delivery worker",
    "purse": "token bucket",
    "relief": "reclaim policy",
    "rooms": "packages",
    "roster": "task set",
    "rung rungs": "step state, ancestor",
    "seat seats": "implementation",
    "seldom": "rate-limited logger, rarely",
    "spared": "exempt, enforcement disabled",
    "stranger strangers": "foreign object, other code",
    "strokes": "batch sizing",
    "tally tallies tallied": "counter",
    "twin twins": "copy",
    "unsaid": "unreported",
    "weighed": "byte-bounded",
    "wishes": "options",
    "zoo": "programs",
}

# What a single word does not decide. `_` stands for the space, line break or underscore between two words.
PHRASES = {
    r"of_ours": "of memtools, or the name of the part",
    r"leaves_to_others": "nothing: a docstring does not list what other files do",
    r"as_told_by": "reported by",
    r"quick_ways?": "fast path",
    r"second_way": "fallback reader",
    # "room for", "room to" and "more room" are ordinary English; a room that is entered, or a name, is not.
    r"(?:an?|the|this|that|its|each|every|another|own|one)_room(?!_(?:for|to|left|in)\b)": "package, headroom",
}
NAMES = {
    r"\w*let_go\w*": "release, evict, forget",
    r"\w*make_young\w*": "promote",
    r"\w*(?<!has)(?<!need)(?<!with)(?<!more)(?<!make)(?<!little)_room\b": "headroom, package",
    r"\b_*room_\w+|\w*[a-z]Room\w*": "headroom, package",
}

# Also retired as terms of this package, but not checked, because they are ordinary English or terms of the field:
# act, box, calm, cell, credit, driven, driver, edge, effects, fact, flight (single-flight, in flight), gauge
# (Prometheus), gate, greeting, grace, interval, last, layered, leaf, letter, life, line, look, lost, mark, outer, pace,
# past, place, plain, ring (buffer), row, segment, settle, shadow, share, signal, spare, standing, step, swallowed,
# told, trust, turn, wake, wall, way, window, wire.

SUFFIXES = {".py", ".pyi", ".c", ".h", ".sh", ".md"}
SKIPPED = {"build", "dist", "_build", "node_modules", "__pycache__", "venv"}
# They list the retired words.
EXEMPT = {".ci/check_prose.py", "tests/test_prose_check.py"}
LONGEST_TEST_NAME = 60

_INSTEAD = {word: instead for words, instead in WORDS.items() for word in words.split()}
_GAP = r"(?:_|[ \t]+|[ \t]*\n[ \t]*(?:[#*>]|//|#:)?[ \t]*)"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PATTERNS = [(re.compile(rf"\b(?:{text.replace('_', _GAP)})\b", re.IGNORECASE), told) for text, told in PHRASES.items()]
_PATTERNS += [(re.compile(text), told) for text, told in NAMES.items()]
_LINK = re.compile(r"https?://[^\s)>\"']+|[\w./-]*decisions/[\w./-]+|(?<=\]\()[\w./#-]+")
_CODE_SPAN = re.compile(r"`[^`\n]+`")


class Finding(NamedTuple):
    """A word, where it stands, and what to write instead."""

    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.word}: {self.instead}"


def check_text(text: str, path: str = "") -> list[Finding]:
    """Return the retired words of `text`, in the order in which they stand."""
    if path.endswith(".md"):
        text = _LINK.sub(_blank, text)
    if Path(path).name == "CHANGELOG.md":
        text = _CODE_SPAN.sub(_blank, text)  # an entry may name what was renamed
    starts = [match.start() for match in re.finditer("^", text, re.MULTILINE)]
    found = [
        (match.start(), match.group(), _INSTEAD[match.group().lower()])
        for match in _WORD.finditer(text)
        if match.group().lower() in _INSTEAD
    ]
    for pattern, instead in _PATTERNS:
        found += [(match.start(), " ".join(match.group().split()), instead) for match in pattern.finditer(text)]
    return [Finding(path, bisect_right(starts, at), word, instead) for at, word, instead in sorted(found)]


def _blank(match: re.Match[str]) -> str:
    return " " * len(match.group())


def check_test_names(source: str, path: str = "") -> list[Finding]:
    """Return the test functions whose names are too long to be read in a failing line."""
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        Finding(path, node.lineno, node.name, f"at most {LONGEST_TEST_NAME} characters, this name has {len(node.name)}")
        for node in functions
        if node.name.startswith("test") and len(node.name) > LONGEST_TEST_NAME
    ]


def check_name(path: str) -> list[Finding]:
    """Return the retired words of a file's name. A decision keeps its name: links point to it."""
    return [] if "docs/decisions/" in path else [one._replace(path=path) for one in check_text(path.replace("/", "\n"))]


def check_folder(root: Path) -> Iterator[Finding]:
    """Yield what is found in the code and the docs below `root`."""
    for file in _files(root):
        path = file.relative_to(root).as_posix()
        if path in EXEMPT:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        yield from (finding._replace(line=1) for finding in check_name(path))
        yield from check_text(text, path)
        if path.startswith("tests/") and path.endswith(".py"):
            yield from check_test_names(text, path)


def _files(root: Path) -> Iterator[Path]:
    for entry in sorted(root.iterdir()):
        if entry.is_dir():
            is_hidden = entry.name.startswith(".") and entry.name not in {".ci", ".github"}
            is_environment = (entry / "pyvenv.cfg").exists()
            if not (is_hidden or is_environment or entry.name in SKIPPED or entry.name.endswith(".egg-info")):
                yield from _files(entry)
        elif entry.suffix in SUFFIXES or (entry.parent.name == ".ci" and not entry.suffix):
            yield entry


def main() -> int:
    """Print what is found, and return the exit status."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    findings = list(check_folder(root))
    for finding in findings:
        print(finding)
    if not findings:
        print("No retired word, and no test name that is too long.")
        return 0

    print(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
