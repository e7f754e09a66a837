"""Version 1 of the file format of a black box, for its writer and its reader.

All numbers are little endian. The header says where each section is, so a later version may move them. `counters`,
`hot` and `threads` are stored by C code (`memtools/ledger/native/black_box.h`), the rest by Python.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Final

from memtools._records import record

MAGIC: Final = b"MEMTBOX1"
VERSION: Final = 1
PAGE: Final = 4096

OPEN: Final = 1  # states of the file
ENDED: Final = 2  # the program, or memtools, has come to a regular end
REPORTED: Final = 3  # it was killed, and the next start of the program has told that

# Magic, version, bytes of the header, bytes of the file, process id, state, start of the process in ticks, start of the
# file in seconds since the epoch, boot id, length and checksum of the description, number of sections.
HEADER: Final = struct.Struct("<8sIIQIIQd16sIIII")
STATE_AT: Final = 28
SECTION: Final = struct.Struct("<QII")  # place, bytes of a record, number of records
SECTION_NAMES: Final = ("hot", "threads", "accounts", "counters", "readings", "last_words", "mailbox")
SECTIONS_AT: Final = HEADER.size
CHECKSUM_AT: Final = SECTIONS_AT + len(SECTION_NAMES) * SECTION.size
KILLS_AT: Final = CHECKSUM_AT + 4  # OOM kills plus one when the next start has told the death; 0 before
DESCRIPTION_AT: Final = 256
MAILBOX_AT: Final = 2048
MAX_DESCRIPTION: Final = MAILBOX_AT - DESCRIPTION_AT

# Change of the charged counter, its number, number in a flush plus one, its bytes then, numbers in use, unsure, lost
# blocks, stopped, counting.
HOT: Final = struct.Struct("<qIIqIIQII")
THREAD: Final = struct.Struct("<IIQ")  # id, number of the counter that it charges, unused
ACCOUNT: Final = struct.Struct("<IIIHH112s")  # checksum of the rest, parent, unused, kind, bytes of the name, name
COUNTER: Final = struct.Struct("<qqIIII")  # own bytes, peak, parent, account, generation, state
# Checksum of the rest, number, seconds since the epoch, monotonic seconds, resident bytes, limit, usage of the cgroup,
# bytes counted (each -1 where it is not known), OOM kills plus one (0 where that is not known), level.
READING: Final = struct.Struct("<IIddqqqqII")
LAST_WORDS: Final = struct.Struct("<IIII")  # checksum of the text, number, bytes of the text, unused
# The mailbox holds a question, which another process writes, and how it stands, which this one writes.
QUESTION: Final = struct.Struct("<IfQ16s32x")  # checksum of the rest, seconds, number (0 for none), word
STANDING: Final = struct.Struct("<IfQI44x")  # checksum of the rest, seconds between two looks, number, standing
STANDING_AT: Final = MAILBOX_AT + QUESTION.size
LISTENING: Final = 1  # standings: nothing is being answered
TAKEN: Final = 2
ANSWERED: Final = 3
NOT_WRITTEN: Final = 4  # there is no room for the answer, say

IN_USE: Final = 1  # bits of a counter's state
IS_OPEN: Final = 2
MAX_NAME_BYTES: Final = 112
KINDS: Final = ("", "scope", "call", "task")
LAST_WORDS_BYTES: Final = 64 * 1024


@record
class Section:
    """Where one kind of record is in the file.

    Attributes:
        at: the place of the first, in bytes.
        size: the bytes of each.
        count: how many there is room for.
    """

    at: int
    size: int
    count: int

    def place(self, number: int) -> int:
        """Return the place of a record."""
        return self.at + self.size * number


def _layout() -> dict[str, Section]:
    sizes = {
        "hot": (PAGE, 1),
        "threads": (THREAD.size, 256),
        "accounts": (ACCOUNT.size, 4224),
        "counters": (COUNTER.size, 32_768),
        "readings": (READING.size, 4096),
        "last_words": (LAST_WORDS_BYTES, 2),
    }
    found: dict[str, Section] = {}
    at = PAGE
    for name, (size, count) in sizes.items():
        found[name] = Section(at, size, count)
        at += size * count
    found["mailbox"] = Section(MAILBOX_AT, PAGE - MAILBOX_AT, 1)
    return found


SECTIONS: Final = _layout()
SIZE: Final = max(section.place(section.count) for section in SECTIONS.values())


def pack_header(pid: int, start_ticks: int, began: float, boot: bytes, description: Mapping[str, object]) -> bytes:
    """Return the first page of a file.

    Args:
        pid: the process.
        start_ticks: when it began, by the system's clock.
        began: when the file began, in seconds since the epoch.
        boot: the id of this start of the machine, 16 bytes.
        description: more about the process, for JSON; entries that do not fit are left out, the last first.
    """
    text = _fitting_json(dict(description))
    head = HEADER.pack(
        MAGIC, VERSION, PAGE, SIZE, pid, OPEN, start_ticks, began, boot, len(text), zlib.crc32(text),
        len(SECTION_NAMES), 0,
    )  # fmt: skip
    for name in SECTION_NAMES:
        section = SECTIONS[name]
        head += SECTION.pack(section.at, section.size, section.count)
    head += struct.pack("<I", header_checksum(head))
    return (head.ljust(DESCRIPTION_AT, b"\0") + text).ljust(PAGE, b"\0")


def header_checksum(head: bytes) -> int:
    """Return the checksum of the fixed part of a header, in which the state, which changes, does not count."""
    return zlib.crc32(head[:STATE_AT] + bytes(4) + head[STATE_AT + 4 : CHECKSUM_AT])


def _fitting_json(description: dict[str, object]) -> bytes:
    while True:
        text = json.dumps(description).encode("ascii")
        if len(text) <= MAX_DESCRIPTION:
            return text
        description.popitem()


def pack_account(parent: int, kind: str, name: str) -> bytes:
    """Return the record of an account; of a long name, the beginning."""
    text = name.encode("utf-8", "replace")[:MAX_NAME_BYTES]
    number = KINDS.index(kind) if kind in KINDS else 0
    return with_checksum(ACCOUNT.pack(0, parent, 0, number, len(text), text))


def with_checksum(packed: bytes) -> bytes:
    """Return a record whose first field, of four bytes, is the checksum of the rest."""
    return struct.pack("<I", zlib.crc32(packed[4:])) + packed[4:]
