"""Looking into the file of a process that runs, again and again: who holds what, and how much memory it uses.

Each look reads what may have changed and no more: the counters that were given out, the readings that are new, the
names that are asked for. Nothing is written, and the process notices nothing.
"""

import os
from collections import deque
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from memtools._records import record
from memtools.black_box._layout import ACCOUNT, COUNTER, ENDED, IS_OPEN, PAGE, READING, SIZE, STATE_AT
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
_PART: Final = 32 * COUNTER.size  # of the counters, that is compared at once


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
        self._sums = _Sums()
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
        self._sums.update(bytes(counters.table))
        held = self._sums.held()
        notes = _notes(counters.hot, is_sure=counters.is_sure)
        return Look(held, self._sums.open_owners(), sum(held.values()), notes)

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


class _Sums:
    """The sums by account over the counters, kept up to date by the parts of the table that have changed."""

    def __init__(self) -> None:
        self._table = b""
        self._held: dict[int, int] = {}
        self._open: dict[int, int] = {}

    def update(self, table: bytes) -> None:
        """Take the counters as they are now."""
        before = self._table
        for at in range(0, max(len(table), len(before)), _PART):
            part, former = table[at : at + _PART], before[at : at + _PART]
            if part != former:
                self._add(former, -1, is_first=at == 0)
                self._add(part, 1, is_first=at == 0)
        self._table = table

    def held(self) -> dict[int, int]:
        """Return the bytes that each account holds."""
        found = self._held.copy()
        if min(found.values(), default=0) < 0:
            # A block that a thread has allocated without the GIL is added by the next flush; one that is freed with the
            # GIL is subtracted at once.
            found = {account: max(size, 0) for account, size in found.items()}
        return found

    def open_owners(self) -> dict[int, int]:
        """Return how many owners of each account are open."""
        return self._open.copy()

    def _add(self, part: bytes, sign: int, *, is_first: bool) -> None:
        held, opened = self._held, self._open
        for own, _, _, account, _, state in COUNTER.iter_unpack(part):
            if own:
                held[account] = held.get(account, 0) + sign * own
            if state & IS_OPEN and not is_first:
                opened[account] = opened.get(account, 0) + sign
            is_first = False  # the first of all counters stands for no owner


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
