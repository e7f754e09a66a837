"""Reading a file of a black box, which may be anything: cut, garbage, or made to mislead.

Counts, lengths, places and parents are bounded; what does not hold is left out and noted. Needs neither psutil nor the
C extensions.
"""

import json
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import isfinite
from typing import Any, Final, cast

from memtools._records import record
from memtools.black_box._layout import (
    ACCOUNT,
    CHECKSUM_AT,
    COUNTER,
    DESCRIPTION_AT,
    ENDED,
    HEADER,
    HOT,
    IN_USE,
    IS_OPEN,
    KILLS_AT,
    KINDS,
    LAST_WORDS,
    LAST_WORDS_BYTES,
    MAGIC,
    MAX_DESCRIPTION,
    MAX_NAME_BYTES,
    PAGE,
    READING,
    SECTION,
    SECTION_NAMES,
    SECTIONS,
    SECTIONS_AT,
    SIZE,
    THREAD,
    VERSION,
    Section,
    header_checksum,
)
from memtools.black_box._post_mortem import Holding, PastReading, PostMortem
from memtools.black_box._verdict import Evidence, judge
from memtools.readings._shares import process_start
from memtools.readings._traces import MemoryCgroup, boot_id, pid_namespace

if sys.platform != "win32":
    import fcntl

_MAX_BYTES: Final = 64 << 20  # of a file; version 1 has 2 MB
_MAX_DEPTH: Final = 64  # of the path of an owner
_RECORD_SIZES: Final = {
    "hot": PAGE, "threads": THREAD.size, "accounts": ACCOUNT.size, "counters": COUNTER.size, "readings": READING.size,
    "last_words": LAST_WORDS_BYTES, "mailbox": SECTIONS["mailbox"].size,
}  # fmt: skip
NO_OWNER: Final = "<no owner>"
_LOOKS: Final = 8  # at a file that is being written, until one of them shows it between two changes
_LOOK_NS: Final = 100_000  # a look that took longer was interrupted
_CHARGED_NS: Final = 20_000
_PAUSE_S: Final = 0.0002  # changes of several records take about that


def read_black_box(path: str | os.PathLike[str]) -> PostMortem:
    """Return what the file of a black box says: of a process that was killed, that has ended, or that still runs.

    Args:
        path: the file; not a folder.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no black box, or one of a later version of memtools; the text says which.
    """
    with open(path, "rb", opener=open_regular) as file:
        content = file.read(min(os.fstat(file.fileno()).st_size, _MAX_BYTES))
        parser = BoxParser(os.fspath(path), content)
        is_alive = parser.is_alive(partial(is_held, file.fileno()))
        counters = read_live_counters(file.fileno(), parser.sections) if is_alive else None
        if counters is not None:
            parser = BoxParser(os.fspath(path), counters.put_into(content, parser.sections))
    return parser.post_mortem(is_alive=is_alive)


def oom_kills_now(path: str) -> int | None:
    """Return how many processes of a dead process's cgroup the kernel has killed up to now; None where not known.

    Raises:
        OSError: when the file cannot be read.
    """
    with open(path, "rb", opener=open_regular) as file, suppress(ValueError):
        return BoxParser(path, file.read(PAGE)).oom_kills_now()
    return None


def open_regular(path: str, flags: int) -> int:
    """Open a file for reading; a pipe does not make the reader wait."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def is_held(fd: int) -> bool:
    """Return whether a process holds the lock of the file.

    For a moment this takes the lock of a file that is free, and then the next start of the program may miss it: it is
    asked only where there is no other way.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


@record
class LiveCounters:
    """The counters of a process that runs, as they would be after a flush.

    Attributes:
        hot: the fields of the hot record.
        table: the records of the counters that were given out.
        is_sure: whether they were not seen in the middle of a change of several records.
    """

    hot: tuple[int, ...]
    table: bytearray
    is_sure: bool

    def put_into(self, content: bytes, sections: Mapping[str, Section]) -> bytes:
        """Return the content of the file with these figures in their places."""
        whole = bytearray(content)
        unsure, lost, stopped = int(not self.is_sure), self.hot[6], self.hot[7]
        used = len(self.table) // COUNTER.size
        for at, packed in (
            (sections["hot"].at, HOT.pack(0, self.hot[1], 0, 0, used, unsure, lost, stopped, 1)),
            (sections["counters"].at, self.table),
        ):
            whole[at : at + len(packed)] = packed
        return bytes(whole)


def read_live_counters(fd: int, sections: Mapping[str, Section]) -> LiveCounters | None:
    """Return the counters from the file of a process that writes it meanwhile; None where no ledger writes.

    What each counter is said to hold it did hold at some moment of the call. Only the counter that is charged has more
    or less than its record says, by the `change` of the hot record, which a flush moves into the record: both belong
    together where the record is the same before and after, and no flush is under way. The counter that was charged
    when the call began may have been flushed and left since; its record is read again then.

    Cost: 20 us, and 30 us for each 1,000 counters; more while several records are being changed.

    Raises:
        OSError: when the file cannot be read.
    """
    section = sections["counters"]

    def read_hot() -> tuple[int, ...]:
        found = os.pread(fd, HOT.size, sections["hot"].at)
        return HOT.unpack(found.ljust(HOT.size, b"\0"))

    def read_own(number: int) -> int:
        return int.from_bytes(os.pread(fd, _OWN_BYTES, section.place(number)), "little", signed=True)

    looks = 0
    while True:
        looks += 1
        began = time.perf_counter_ns()
        first = read_hot()
        if not first[8]:
            return None
        table = bytearray(os.pread(fd, min(first[4], section.count) * section.size, section.at))
        is_unsure = bool(first[5] or read_hot()[5])
        is_one_look = time.perf_counter_ns() - began < _LOOK_NS + 2 * len(table)
        if looks == _LOOKS or (is_one_look and not is_unsure):
            break
        time.sleep(_PAUSE_S if is_unsure else 0)
    del table[len(table) // COUNTER.size * COUNTER.size :]
    for number, own in _settle(first[1], read_hot, read_own).items():
        at = number * COUNTER.size
        if at < len(table):
            table[at : at + _OWN_BYTES] = own.to_bytes(_OWN_BYTES, "little", signed=True)
    return LiveCounters(first, table, not is_unsure)


def _settle(charged: int, read_hot: Callable[[], tuple[int, ...]], read_own: Callable[[int], int]) -> dict[int, int]:
    """Return what the counter that is charged now holds, and the one that was charged before, by their numbers."""
    number = charged
    for _ in range(_LOOKS):
        began = time.perf_counter_ns()
        before, hot, after = read_own(number), read_hot(), read_own(number)
        # Of a longer time, in which the process may have turned to others and come back, the two say nothing.
        is_one_moment = time.perf_counter_ns() - began < _CHARGED_NS and before == after and not hot[2]
        if is_one_moment and hot[1] == number and after + hot[0] >= 0:
            return {charged: read_own(charged), number: after + hot[0]}
        number = hot[1] if hot[1] <= _MAX_NUMBER else charged
    return {each: read_own(each) for each in (charged, number)}  # as the last flush has left them


@record
class _Counter:
    own: int
    peak: int
    account: int
    generation: int
    state: int


class BoxParser:
    """The parts of one file.

    Raises:
        ValueError: when it is no black box of this version.

    Attributes:
        notes: what does not hold.
        sections: where the parts of the file are.
        description: what the header tells of the process.
        pid: the process.
        state: the state of the file.
    """

    def __init__(self, path: str, content: bytes) -> None:
        self._path = path
        self._content = content
        self.notes: dict[str, None] = {}  # in order, each once
        if content[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path} is no black box of memtools" if content else f"{path} is empty")
        if len(content) < PAGE:
            raise ValueError(f"{path} was cut inside of its header, to {len(content)} bytes")
        (
            _, version, _, self._size, self.pid, self.state, self.ticks, self.began, self.boot, length, checksum,
            sections, _,
        ) = HEADER.unpack_from(content)  # fmt: skip
        if version != VERSION:
            raise ValueError(f"{path} has version {version} of the format: a later memtools than this one reads it")
        self._has_good_header = struct.unpack_from("<I", content, CHECKSUM_AT)[0] == header_checksum(content)
        if not self._has_good_header:
            self._note("the header is damaged, so what it says may be wrong")
        self.sections = self._read_sections(sections)
        if len(content) < SIZE:
            self._note(f"the file was cut: {len(content):,} of {SIZE:,} bytes")
        self.description = self._read_description(length, checksum)

    def _note(self, note: str) -> None:
        self.notes[note] = None

    def _read_sections(self, count: int) -> dict[str, Section]:
        if not self._has_good_header:
            return SECTIONS
        found = dict(SECTIONS)
        for number, name in enumerate(SECTION_NAMES[: min(count, len(SECTION_NAMES))]):
            at, size, records = SECTION.unpack_from(self._content, SECTIONS_AT + number * SECTION.size)
            if size != _RECORD_SIZES[name] or records > SECTIONS[name].count or at > _MAX_BYTES:
                self._note(f"the section {name} is not where it can be")
                continue
            found[name] = Section(at, size, records)
        return found

    def _read_description(self, length: int, checksum: int) -> dict[str, Any]:  # Any: JSON
        text = self._content[DESCRIPTION_AT : DESCRIPTION_AT + min(length, MAX_DESCRIPTION)]
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
            if zlib.crc32(text) == checksum and isinstance(found, dict):
                return cast("dict[str, Any]", found)
        self._note("the description of the process is damaged")
        return {}

    def _records(self, name: str, form: struct.Struct, most: int | None = None) -> Iterator[tuple[Any, ...]]:
        # Of a file that was cut, the records that are whole.
        section = self.sections[name]
        count = section.count if most is None else min(most, section.count)
        part = self._content[section.at : section.at + count * section.size]
        yield from form.iter_unpack(part[: len(part) // form.size * form.size])

    def post_mortem(self, *, is_alive: bool) -> PostMortem:
        """Return all that the file says.

        Args:
            is_alive: whether its process runs.
        """
        hot = self.read_hot()
        counters = {} if hot is None else self.read_counters(hot)
        accounts = self._read_accounts()
        readings = self._read_readings()
        counted = sum(counter.own for counter in counters.values()) if hot is not None else None
        holdings = self._holdings(counters, accounts)
        single = max(
            (pair for pair in counters.items() if pair[1].state & IS_OPEN and pair[0]),
            key=lambda pair: pair[1].own,
            default=None,
        )
        evidence = Evidence(
            state=self.state,
            is_alive=is_alive,
            is_other_boot=self.boot != boot_id(),
            readings=readings,
            counted_bytes=counted,
            oom_kills_now=self.oom_kills_now(),
            cgroup_limit=self._number_in_description("cgroup_limit"),
            resident_at_open=self._number_in_description("resident_at_open"),
        )
        verdict, why = judge(evidence)
        return PostMortem(
            path=self._path,
            verdict=verdict,
            why=why,
            pid=self.pid,
            name=self.text_in_description("name"),
            command=self.text_in_description("command"),
            began_at=_finite(self.began),
            notes=tuple(self.notes),
            counted_bytes=counted,
            native_bytes=evidence.native_bytes(),
            holdings=holdings,
            single_owner=None if single is None else self._single(single[1], accounts),
            charged=self._name_of(hot[1], counters, accounts) if hot is not None else "",
            threads=self._read_threads(counters, accounts),
            readings=readings,
            last_words=self._read_last_words(),
            facts=tuple((str(key), str(value)) for key, value in self.description.items() if isinstance(value, str)),
        )

    def read_hot(self) -> tuple[int, ...] | None:
        """Return the hot record; None where no ledger has written, with the reason noted."""
        found = next(iter(self._records("hot", _HOT_PAGE)), None)
        hot = None if found is None else HOT.unpack_from(found[0])
        if hot is None or not hot[8]:
            self._note("no ledger has counted: there are readings and last words only")
            return None
        if hot[5]:
            self._note("several records were being written: figures of owners may be wrong")
        if hot[6]:
            self._note(f"{hot[6]:,} blocks were not counted, for want of memory")
        if hot[7]:
            self._note("the ledger had stopped counting: its figures are older than the death")
        return hot

    def read_counters(self, hot: tuple[int, ...]) -> dict[int, _Counter]:
        """Return what each counter holds, by its number."""
        change, charged, flushing, flushed_own, used = hot[:5]
        found: dict[int, _Counter] = {}
        for number, (own, peak, _, account, generation, state) in enumerate(self._records("counters", COUNTER, used)):
            if not state & IN_USE and own == 0:
                continue
            if flushing == number + 1:
                own = flushed_own
            elif not flushing and number == charged:
                own += change
            found[number] = _Counter(own, max(peak, own), account, generation, state)
        if not flushing and change and charged not in found:
            self._note("the counter that was charged is not in the file")
        negative = sum(counter.own < 0 for counter in found.values())
        if negative:
            self._note(f"{negative} owners have less than nothing: the file is damaged")
        return found

    def _read_accounts(self) -> dict[int, tuple[str, str, int]]:
        """Return the name, kind and parent of each account by its number."""
        section = self.sections["accounts"]
        found: dict[int, tuple[str, str, int]] = {}
        for number, fields in enumerate(self._records("accounts", ACCOUNT)):
            if not fields[4]:
                continue
            at = section.place(number)
            account = decode_account(self._content[at : at + ACCOUNT.size])
            if account is None:
                self._note(f"the name of account {number} is damaged")
                continue
            found[number] = account
        return found

    def _path_of(self, number: int, accounts: dict[int, tuple[str, str, int]]) -> tuple[str, ...]:
        path, is_circle = path_of(number, accounts.get)
        if is_circle:
            self._note("accounts are their own ancestors: the file is damaged")
        return path

    def _holdings(
        self, counters: dict[int, _Counter], accounts: dict[int, tuple[str, str, int]]
    ) -> tuple[Holding, ...]:
        held: dict[int, list[int]] = {}
        for number, counter in counters.items():
            key = counter.account if number else -1
            sums = held.setdefault(key, [0, 0])
            sums[0] += counter.own
            sums[1] += bool(counter.state & IS_OPEN) and number != 0
        found: list[Holding] = []
        for number, (own, open_count) in held.items():
            if number > 0 and number in accounts:
                name, kind = self._path_of(number, accounts), accounts[number][1]
            else:
                name, kind = (NO_OWNER if number <= 0 else f"<account {number}>",), ""
            found.append(Holding(name, kind, own, open_count))
        # Two kinds of what no account has: what no owner was active for, and owners that had none.
        found.sort(key=lambda holding: (-holding.held_bytes, holding.path))
        return tuple(_without_duplicates(found))

    def _single(self, counter: _Counter, accounts: dict[int, tuple[str, str, int]]) -> Holding:
        known = accounts.get(counter.account)
        path = self._path_of(counter.account, accounts) if known else (f"<account {counter.account}>",)
        return Holding(path, known[1] if known else "", counter.own, 1, counter.generation, counter.peak)

    def _name_of(self, number: int, counters: dict[int, _Counter], accounts: dict[int, tuple[str, str, int]]) -> str:
        counter = counters.get(number)
        if number == 0 or counter is None:
            return NO_OWNER
        return accounts[counter.account][0] if counter.account in accounts else f"<account {counter.account}>"

    def _read_threads(
        self, counters: dict[int, _Counter], accounts: dict[int, tuple[str, str, int]]
    ) -> tuple[tuple[int, str], ...]:
        records = list(self._records("threads", THREAD))[1:]
        return tuple((ident, self._name_of(number, counters, accounts)) for ident, number, _ in records if ident)

    def _read_readings(self) -> tuple[PastReading, ...]:
        section = self.sections["readings"]
        found: list[tuple[int, PastReading]] = []
        damaged = 0
        for place, _ in enumerate(self._records("readings", READING)):
            at = section.place(place)
            packed = self._content[at : at + READING.size]
            if not any(packed):
                continue
            reading = decode_reading(packed)
            if reading is None:
                damaged += 1
                continue
            found.append(reading)
        if damaged:
            self._note(f"{damaged} readings are damaged")
        return tuple(reading for _, reading in sorted(found, key=lambda pair: pair[0]))

    def _read_last_words(self) -> str:
        found: list[tuple[int, str]] = []
        section = self.sections["last_words"]
        for slot in range(section.count):
            at = section.place(slot)
            part = self._content[at : at + section.size]
            if len(part) < LAST_WORDS.size:
                continue
            checksum, number, length, _ = LAST_WORDS.unpack_from(part)
            body = part[LAST_WORDS.size : LAST_WORDS.size + min(length, LAST_WORDS_BYTES)]
            if number and zlib.crc32(body) == checksum:
                found.append((number, body.decode("utf-8", "replace")))
        return max(found, default=(0, ""))[1]

    def is_alive(self, is_held: Callable[[], bool]) -> bool:
        """Return whether the process of the file runs.

        Args:
            is_held: tells whether a process holds the lock of the file; asked where the id of the process does not say.
        """
        if self.state == ENDED or self.boot != boot_id():
            return False
        if self.description.get("pid_namespace") != pid_namespace():
            return is_held()  # ids of processes mean nothing here
        return process_start(self.pid) == str(self.ticks) if self.ticks else is_held()

    def oom_kills_now(self) -> int | None:
        """Return the OOM kills of the cgroup when the death was told; else now, where this process sees the cgroup."""
        told = int.from_bytes(self._content[KILLS_AT : KILLS_AT + 4], "little")
        if told:
            return told - 1
        found = self.description.get("cgroup")
        if self.boot != boot_id() or not isinstance(found, list):
            return None
        fields = cast("list[object]", found)
        match fields:
            case [int(version), str(directory), int(inode)] if version in (1, 2) and inode:
                cgroup = MemoryCgroup(version, directory, inode)
                return cgroup.oom_kills() if cgroup.is_there() else None
            case _:
                return None

    def _number_in_description(self, name: str) -> int | None:
        value = self.description.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text_in_description(self, name: str) -> str:
        """Return a text of the description; empty where it has none of that name."""
        value = self.description.get(name)
        return value if isinstance(value, str) else ""


_HOT_PAGE: Final = struct.Struct(f"{PAGE}s")
_OWN_BYTES: Final = 8  # the first of a counter's record
_MAX_NUMBER: Final = SECTIONS["counters"].count - 1


def decode_account(packed: bytes) -> tuple[str, str, int] | None:
    """Return the name, kind and parent of an account; None where there is none, or its record is not whole."""
    if len(packed) != ACCOUNT.size:
        return None
    checksum, parent, _, kind, length, name = ACCOUNT.unpack(packed)
    if not length or zlib.crc32(packed[4:]) != checksum:
        return None
    text: str = name[: min(length, MAX_NAME_BYTES)].decode("utf-8", "replace")
    word = KINDS[int(kind)] if kind < len(KINDS) else ""
    return text, word, parent


def decode_reading(packed: bytes) -> tuple[int, PastReading] | None:
    """Return the number of a reading, and what it says; None where its record is not whole."""
    if len(packed) != READING.size or not any(packed):
        return None
    checksum, number, unix, monotonic, resident, limit, usage, counted, kills, level = READING.unpack(packed)
    if zlib.crc32(packed[4:]) != checksum:
        return None
    return number, PastReading(
        at=_finite(unix),
        monotonic_s=_finite(monotonic),
        resident_bytes=resident,
        limit_bytes=_known(limit),
        usage_bytes=_known(usage),
        counted_bytes=_known(counted),
        oom_kills=kills - 1 if kills else None,
        level=min(level, 2),
    )


def path_of(number: int, account: Callable[[int], tuple[str, str, int] | None]) -> tuple[tuple[str, ...], bool]:
    """Return the names from the outermost account to this one, and whether its ancestors are a circle."""
    names: list[str] = []
    seen: set[int] = set()
    found = account(number)
    while found is not None and number not in seen and len(names) < _MAX_DEPTH:
        seen.add(number)
        name, _, number = found
        names.append(name)
        found = account(number)
    return tuple(reversed(names)), number in seen


def _finite(seconds: float) -> float:
    return seconds if isfinite(seconds) else 0.0


def _known(figure: int) -> int | None:
    return None if figure < 0 else figure


def _without_duplicates(holdings: list[Holding]) -> Iterator[Holding]:
    unowned = [holding for holding in holdings if holding.path == (NO_OWNER,)]
    for holding in holdings:
        if holding.path != (NO_OWNER,):
            yield holding
        elif holding is unowned[0]:
            held, open_owners = (sum(figures) for figures in zip(*map(_figures, unowned), strict=True))
            yield Holding(holding.path, "", held, open_owners)


def _figures(holding: Holding) -> tuple[int, int]:
    return holding.held_bytes, holding.open_owners
