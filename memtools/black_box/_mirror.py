"""The ledger's part of a black box: which account is which, and the file that the C code stores to."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from memtools.black_box._file import BoxFile
from memtools.black_box._layout import SECTIONS, SIZE, pack_account
from memtools.ledger import Meter, choose_meter
from memtools.ledger._ledger import all_accounts
from memtools.ledger._owner import Account, find_native

_OTHER_BOX: Final = "another black box of this process has the ledger"


class LedgerMirror:
    """The connection of the native ledger with a file. While it is there, the ledger counts all the time.

    Args:
        names: whether the names of owners are written.

    Attributes:
        why_not: why the ledger does not write, empty where it does.
    """

    def __init__(self, *, names: bool) -> None:
        self.why_not = "it is closed"
        self._names = names
        self._meter: Meter | None = None
        self._native: Any = None  # Any: the C extension, which may not have been built

    def open(self, file: BoxFile) -> None:
        """Have the ledger write into the file, if it is the meter of this process and no other file has it."""
        meter = choose_meter()
        if meter.name != "native":
            self.why_not = f"the meter is {meter.name}"
            return
        native: Any = find_native()[0]
        try:
            native.black_box_open(file.fd, SECTIONS["hot"].at, SECTIONS["threads"].at, SECTIONS["counters"].at, SIZE)
        except OSError as error:
            self.why_not = _OTHER_BOX if error.errno == 16 else str(error)  # EBUSY
            return
        self.why_not = ""
        self._native, self._meter = native, meter
        meter.acquire()
        native.suspend_enforcement(False)  # which `acquire` has suspended, for an owner that is opened next
        _listen(partial(_write_account, native.black_box_write, names=self._names))
        for account in all_accounts():
            _write_account(native.black_box_write, account, names=self._names)

    def check(self) -> int | None:
        """Write what threads have changed without the GIL; return the bytes that are counted now.

        None where the ledger does not write, or no more: where the file was cut.
        """
        if self._native is None:
            return None
        is_lost, counted = self._native.black_box_check()
        if is_lost:
            self.close()
            self.why_not = "the file was cut"
            return None
        return int(counted)

    def close(self) -> None:
        """Have the ledger let go of the file; a second call does nothing."""
        native, meter = self._native, self._meter
        self._native = self._meter = None
        if native is None or meter is None:
            return
        self.why_not = "it is closed"
        _listen(None)
        native.black_box_close()
        meter.release()


def _listen(listener: Callable[[Account], object] | None) -> None:
    from memtools.ledger.meters._native import set_account_listener  # it may not have been built

    set_account_listener(listener)


def _write_account(write: Callable[[int, bytes], bool], account: Account, *, names: bool) -> None:
    from memtools.ledger.meters._native import account_number  # as above

    number = account_number(account)
    section = SECTIONS["accounts"]
    if not 0 < number < section.count:
        return  # none, or beyond the room for names: the reader shows a number
    above, parent = account.parent, 0
    while above is not None and not parent:
        parent = account_number(above)
        above = above.parent
    record = pack_account(parent, account.kind, account.name if names else f"{account.kind} {number}")
    write(section.place(number), record)
