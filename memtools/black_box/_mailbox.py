"""The mailbox of a black box: a question that another process of the user writes into the file, and its answer.

Both ends of it: `Mailbox` is the program's, `ask` that of the process that asks. The answer is a file of its own beside
the box, since an answer may be long, and what the box has room for belongs to the last words. Neither end trusts what
it finds: the program knows four words and follows no figure but a bounded number of seconds.
"""

import json
import os
import random
import stat
import sys
import time
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from math import isfinite
from typing import Any, Final, cast

from memtools._records import record
from memtools.black_box._file import BoxFile, read_state
from memtools.black_box._layout import (
    ANSWERED,
    HEADER,
    LISTENING,
    MAGIC,
    MAILBOX_AT,
    NOT_WRITTEN,
    OPEN,
    QUESTION,
    STANDING,
    STANDING_AT,
    TAKEN,
    VERSION,
    with_checksum,
)

if sys.platform != "win32":
    import fcntl

WORDS: Final = ("report", "leaks", "heap", "owners")
MAX_SECONDS: Final = 600.0
_MIN_GAP_S: Final = 1.0  # from one answer to the next question that is taken
_MAX_ANSWER_BYTES: Final = 1 << 20
_POLL_S: Final = 0.02
_GRACE_S: Final = 5.0  # for a tick that is late
_MAX_INTERVAL_S: Final = 600.0  # what the file says of it is bounded, too


@record
class Question:
    """What is asked.

    Attributes:
        number: tells it from others, and is part of the name of the answer.
        word: one of the four words, or another one, which is refused.
        seconds: for how long the program is to be observed.
    """

    number: int
    word: str
    seconds: float


class NoAnswer(Exception):
    """A process that has not answered; the text says why, and what can be done."""


class Mailbox:
    """The program's end: one question at a time, and a pause after each.

    Args:
        clock: monotonic seconds.

    Threads: one call at a time, but for `finish`, which the answering thread calls.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: int = 0  # the number of the newest question that was taken
        self._interval_s = -1.0
        self._is_busy = False
        self._next_at = 0.0
        self._answer_path = ""
        self._is_closed = False

    def look(self, file: BoxFile, interval_s: float) -> Question | None:
        """Return a question that is to be answered now; the caller has to call `finish` in the end.

        Args:
            file: the box.
            interval_s: seconds to the next look; where it changes, the file is told.

        Raises:
            OSError: when the file cannot be read or written.
        """
        if self._is_busy:
            return None
        if interval_s != self._interval_s:
            file.write_standing(interval_s, self._last, ANSWERED if self._last else LISTENING)
            self._interval_s = interval_s
        question = _parse_question(file.read_question())
        if question is None or question.number == self._last or self._clock() < self._next_at:
            return None
        self._remove_answer()  # of an asker that has died
        file.write_standing(interval_s, question.number, TAKEN)
        self._last, self._is_busy = question.number, True
        return question

    def finish(self, file: BoxFile, question: Question, answer: dict[str, object]) -> None:
        """Write the answer beside the box, for this user only, and be ready for the next question.

        Raises:
            OSError: when it cannot be written; the question then stands as not written.
        """
        standing = NOT_WRITTEN
        try:
            if self._is_closed:
                return  # the program has ended
            path = answer_path(file.path, question.number)
            _write_answer(path, answer)
            self._answer_path, standing = path, ANSWERED
        finally:
            self._next_at = self._clock() + _MIN_GAP_S
            self._is_busy = False
            if not self._is_closed:
                file.write_standing(self._interval_s, question.number, standing)

    def close(self) -> None:
        """Remove an answer that nothing has fetched, and write no further one."""
        self._is_closed = True
        self._remove_answer()

    def _remove_answer(self) -> None:
        path, self._answer_path = self._answer_path, ""
        if path:
            with suppress(OSError):
                os.unlink(path)


def answer_path(box: str, number: int) -> str:
    """Return where the answer to a question is: a hidden file beside the box."""
    folder, name = os.path.split(box)
    return os.path.join(folder, f".{name}.{number:016x}.answer")


def _parse_question(packed: bytes) -> Question | None:
    if len(packed) < QUESTION.size or not any(packed):
        return None
    checksum: int
    seconds: float
    number: int
    word: bytes
    checksum, seconds, number, word = QUESTION.unpack(packed)
    if zlib.crc32(packed[4:]) != checksum or not number:
        return None  # half of it may be written so far
    seconds = min(max(seconds, 0.0), MAX_SECONDS) if isfinite(seconds) else 0.0
    return Question(number, word.rstrip(b"\0").decode("ascii", "replace"), seconds)


def _write_answer(path: str, answer: dict[str, object]) -> None:
    body = json.dumps(answer).encode("ascii", "replace")
    if len(body) > _MAX_ANSWER_BYTES:
        body = json.dumps({"refused": f"the answer is longer than {_MAX_ANSWER_BYTES:,} bytes"}).encode("ascii")
    part = f"{path}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(body)
        os.rename(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def ask(
    path: str,
    word: str,
    seconds: float,
    *,
    timeout_s: float,
    is_alive: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:  # Any: what the file says
    """Ask the process of a box, wait for its answer and return it.

    Args:
        path: the box.
        word: one of the four words.
        seconds: for how long the program is to be observed.
        timeout_s: how many seconds longer than that to wait at most.
        is_alive: whether the process is there.
        clock: monotonic seconds.
        sleep: waits for so many seconds.

    Raises:
        NoAnswer: where none comes, or the process refuses.
        OSError: when the file cannot be read or written.
    """
    number = random.SystemRandom().getrandbits(64) | 1
    with _open_mailbox(path) as fd:
        interval_s = _interval_of(fd)
        os.pwrite(fd, with_checksum(QUESTION.pack(0, seconds, number, word.encode("ascii"))), MAILBOX_AT)
        try:
            taken_by = clock() + min(interval_s, _MAX_INTERVAL_S) + _MIN_GAP_S + _GRACE_S
            until = clock() + seconds + timeout_s
            while (standing := _standing_of(fd, number)) not in (ANSWERED, NOT_WRITTEN):
                if not is_alive() or read_state(fd) != OPEN:
                    raise NoAnswer("the process, or its monitor, has ended meanwhile")
                if standing != TAKEN and clock() >= min(taken_by, until):
                    raise NoAnswer(
                        "its monitor did not look: does its event loop hang, is it stopped, or is it in C code that "
                        "keeps the GIL?"
                    )
                if clock() >= until:
                    raise NoAnswer(f"no answer within {seconds + timeout_s:,.0f} s; a longer --timeout may do")
                sleep(_POLL_S)
            if standing == NOT_WRITTEN:
                raise NoAnswer(f"the process could not write its answer; is there room in {os.path.dirname(path)}?")
            return _read_answer(answer_path(path, number), os.fstat(fd).st_uid)
        finally:
            # What is left would be answered by a monitor that looks later.
            with suppress(OSError):
                os.pwrite(fd, bytes(QUESTION.size), MAILBOX_AT)
            with suppress(OSError):
                os.unlink(answer_path(path, number))


@contextmanager
def _open_mailbox(path: str) -> Generator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        head = os.pread(fd, HEADER.size, 0)
        if not stat.S_ISREG(os.fstat(fd).st_mode) or len(head) < HEADER.size or head[: len(MAGIC)] != MAGIC:
            raise NoAnswer(f"{path} is no black box of memtools")
        version = int.from_bytes(head[len(MAGIC) : len(MAGIC) + 4], "little")
        if version != VERSION:
            raise NoAnswer(f"its black box is of version {version}, and this memtools knows {VERSION}")
        try:
            # Its own kind of lock: the process itself holds the file by `flock`. The system drops it with this process.
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, QUESTION.size, MAILBOX_AT)
        except BlockingIOError:
            raise NoAnswer("another process is asking it; try again when that has its answer") from None
        yield fd
    finally:
        os.close(fd)


def _interval_of(fd: int) -> float:
    found = os.pread(fd, STANDING.size, STANDING_AT)
    if len(found) == STANDING.size and zlib.crc32(found[4:]) == int.from_bytes(found[:4], "little"):
        interval_s = STANDING.unpack(found)[1]
        if isfinite(interval_s) and interval_s >= 0 and any(found[4:]):
            return float(interval_s)
    raise NoAnswer(
        "nothing looks at the mailbox of its black box: that takes MemoryMonitor(black_box=...) or "
        "`memtools run --black-box`, of this version"
    )


def _standing_of(fd: int, number: int) -> int:
    found = os.pread(fd, STANDING.size, STANDING_AT)
    if len(found) < STANDING.size or zlib.crc32(found[4:]) != int.from_bytes(found[:4], "little"):
        return 0
    _, _, answered, standing = STANDING.unpack(found)
    return int(standing) if answered == number else 0


def _read_answer(path: str, uid: int) -> dict[str, Any]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid != uid or not stat.S_ISREG(status.st_mode):
            raise NoAnswer(f"{path} is not the answer of the process: another user has made it")
        body = file.read(_MAX_ANSWER_BYTES + 1)
    try:
        found: object = json.loads(body)
    except ValueError:
        found = None
    if len(body) > _MAX_ANSWER_BYTES or not isinstance(found, dict):
        raise NoAnswer(f"{path} is not the answer of the process")
    answer = cast("dict[str, Any]", found)
    refused = answer.get("refused")
    if refused:
        raise NoAnswer(f"the process refuses: {refused}")
    return answer
