"""Looking into the file of a process that runs, again and again: who holds what, and how much memory it uses.

Each look reads what may have changed and no more: the counters that were given out, the readings that are new, the
names that are asked for. Nothing is written, and the process notices nothing.
"""

import os
from collections import Counter, deque
from itertools import compress
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from memtools._records import record
from memtools.black_box._layout import ACCOUNT, ENDED, IS_OPEN, PAGE, READING, SIZE, STATE_AT
from memtools.black_box._post_mortem import PastReading
from memtools.black_box._reader import (
    NO_OWNER,
    BoxParser,
    decode_account,
    decode_reading,
    is_held,
    open_regular,
    path_of,
    read_live_counters,
)

State: TypeAlias = Literal["alive", "ended", "killed"]

_KEPT: Final = 900  # readings: a quarter of an hour of one in a second
_OWN, _OWN_STEP = 0, 4  # places of the fields among the words of 8 bytes, and of 4 bytes, of a counter's record
_ACCOUNT_PLACE, _STATE_PLACE, _STEP = 5, 7, 8


@record
class Look:
    """What the owners of a process hold at one moment.

    Attributes:
        held: bytes by the number of the account; 0 is for no owner.
        open_owners: how many owners of an account are open.
        counted_bytes: the sum; None where no ledger writes.
        notes: why figures may be wrong.
    """

    held: dict[int, int]
    open_owners: dict[int, int]
    counted_bytes: int | None
    notes: tuple[str, ...]


class LiveBox:
    """The file of one process that runs.

    Args:
        path: the file.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no black box of this version.

    Attributes:
        path: the file.
        pid: the process.
        name: what the program is called.
        readings: the newest readings, the oldest first, as of the last `update`.

    Threads: one call at a time. Cost of a look: some 0.5 ms for 2,000 owners.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = open_regular(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self._parser = BoxParser(self.path, os.pread(self._fd, PAGE, 0))
        except BaseException:
            os.close(self._fd)
            raise
        self._sections = self._parser.sections
        self.pid: int = self._parser.pid
        self.name = self._parser.text_in_description("name")
        self.readings: deque[PastReading] = deque(maxlen=_KEPT)
        self._next_reading: int | None = None
        self._last_look: tuple[bytes, Look] | None = None
        self._names: dict[int, tuple[bytes, tuple[str, str, int]]] = {}

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def state(self) -> State:
        """Return whether the process runs, has come to a regular end, or has not.

        Raises:
            OSError: when the file cannot be read.
        """
        if int.from_bytes(os.pread(self._fd, 4, STATE_AT), "little") == ENDED:
            return "ended"
        return "alive" if self._parser.is_alive(lambda: is_held(self._fd)) else "killed"

    def look(self) -> Look:
        """Return what each owner holds; each figure is one that it had at a moment of the call.

        Raises:
            OSError: when the file cannot be read.
        """
        if os.fstat(self._fd).st_size < SIZE:
            return Look({}, {}, None, ("the file was cut",))
        counters = read_live_counters(self._fd, self._sections)
        if counters is None:
            return Look({}, {}, None, ("no ledger counts its owners",))
        seen = bytes(counters.table) + repr((counters.is_sure, counters.hot[6:8])).encode()
        if self._last_look is not None and self._last_look[0] == seen:
            return self._last_look[1]
        found = _look(counters.table, _notes(counters.hot, is_sure=counters.is_sure))
        self._last_look = seen, found
        return found

    def path_of(self, account: int) -> tuple[str, ...]:
        """Return the names from the outermost owner to this one.

        Raises:
            OSError: when the file cannot be read.
        """
        if account == 0:
            return (NO_OWNER,)
        return path_of(account, self._account)[0] or (f"<account {account}>",)

    def update_readings(self) -> None:
        """Read the readings that are new.

        Raises:
            OSError: when the file cannot be read.
        """
        section = self._sections["readings"]
        while self._next_reading is not None:
            packed = os.pread(self._fd, READING.size, section.place(self._next_reading % section.count))
            found = decode_reading(packed)
            if found is None or found[0] < self._next_reading:
                return  # not written yet, or just being written
            if found[0] > self._next_reading:
                break  # the ring has gone round since
            self.readings.append(found[1])
            self._next_reading += 1
        self._read_ring()

    def _read_ring(self) -> None:
        section = self._sections["readings"]
        ring = os.pread(self._fd, section.count * READING.size, section.at)
        parts = (ring[at : at + READING.size] for at in range(0, len(ring), READING.size))
        found = sorted((each for each in map(decode_reading, parts) if each is not None), key=lambda pair: pair[0])
        self.readings.clear()
        self.readings.extend(reading for _, reading in found)
        self._next_reading = found[-1][0] + 1 if found else 0

    def _account(self, number: int) -> tuple[str, str, int] | None:
        section = self._sections["accounts"]
        if not 0 < number < section.count:
            return None
        packed = os.pread(self._fd, ACCOUNT.size, section.place(number))
        known = self._names.get(number)
        if known is not None and known[0] == packed:
            return known[1]
        found = decode_account(packed)
        if found is None:  # just being written
            return None if known is None else known[1]
        self._names[number] = packed, found
        return found


def _look(table: bytearray, notes: tuple[str, ...]) -> Look:
    words, halves = memoryview(table).cast("q"), memoryview(table).cast("I")
    own = words[_OWN::_OWN_STEP].tolist()
    accounts = halves[_ACCOUNT_PLACE::_STEP].tolist()
    states = halves[_STATE_PLACE::_STEP].tolist()
    held: dict[int, int] = {}
    for account, size in zip(accounts, own, strict=True):
        if size:
            held[account] = held.get(account, 0) + size
    # What a thread has allocated without the GIL is added by the next flush; freed with it, it is subtracted at once.
    for account in [account for account, size in held.items() if size < 0]:
        held[account] = 0
    is_open = [state & IS_OPEN for state in states[1:]]  # the first stands for no owner
    return Look(held, Counter(compress(accounts[1:], is_open)), sum(held.values()), notes)


def _notes(hot: tuple[int, ...], *, is_sure: bool) -> tuple[str, ...]:
    lost, stopped = hot[6:8]
    found: list[str] = []
    if not is_sure:
        found.append("several records were being written: figures of owners may be wrong")
    if lost:
        found.append(f"{lost:,} blocks were not counted, for want of memory")
    if stopped:
        found.append("the ledger has stopped counting")
    return tuple(found)
