"""Blocks made through the allocators' own functions, and books on them that are kept by hand.

Covers: blocks in each domain, with and without the GIL; who made what; what each owner should hold, to the byte.
Leaves to others: when to make and free what (`native_storm`), Python's own objects (`_storm_scopes`).
"""

import ctypes
import threading
from collections.abc import Callable
from random import Random
from typing import Any

SMALLEST = 16  # what a block counts at least
# What calls through ctypes leave behind in the interpreter's free lists, charged to whoever made them first.
LEFT_BEHIND = 16_384
MAX_BLOCKS = 4_000
NO_CEILING = 2**63 - 1
SIZES = (0, 1, 15, 16, 17, 48, 511, 512, 513, 4_096, 65_535, 65_536, 65_537, 300_000)


class Domain:
    """The four functions of one allocator domain; `bare` calls them as a thread of a C library would."""

    def __init__(self, prefix: str, *, bare: bool = False) -> None:
        library = ctypes.CDLL(None) if bare else ctypes.PyDLL(None)
        self.is_bare = bare
        self.malloc = self._function(library[f"{prefix}Malloc"], ctypes.c_size_t)
        self.calloc = self._function(library[f"{prefix}Calloc"], ctypes.c_size_t, ctypes.c_size_t)
        self.realloc = self._function(library[f"{prefix}Realloc"], ctypes.c_void_p, ctypes.c_size_t)
        self.free = self._function(library[f"{prefix}Free"], ctypes.c_void_p)
        self.free.restype = None

    @staticmethod
    def _function(function: Any, *arguments: type) -> Any:
        function.argtypes = arguments
        function.restype = ctypes.c_void_p
        return function


class Book:
    """What one tally should hold; `own` is of its own blocks."""

    def __init__(self, tally: Any, parent: "Book | None") -> None:
        self.tally = tally
        self.parent = parent
        self.own = 0
        self.is_open = True
        self.asked = 0  # how often its stopper was

    def stop(self, used_bytes: int, thread: int, is_refused: bool) -> object:
        """Answer as a stopper: let be, or ask again."""
        self.asked += 1
        return None if self.asked % 3 else NotImplemented


class Bookkeeper:
    """All books and all blocks. Its lock guards the lists, never the calls of the allocator."""

    def __init__(self, native: Any, gate: "Gate") -> None:
        self.native = native
        self.gate = gate
        self.lock = threading.RLock()
        self.books: list[Book] = []
        self.gone: list[Book] = []  # dropped, perhaps with blocks
        self.blocks: list[tuple[Domain, int, int, Book]] = []
        self.domains = [
            Domain("PyMem_Raw"), Domain("PyMem_Raw", bare=True), Domain("PyMem_"), Domain("PyObject_"),
        ]  # fmt: skip
        self.acts = 0
        self.has_ceilings = False
        self.refused = 0

    def lift_ceilings(self) -> None:
        """Let everybody hold what they like."""
        for book in self.books:
            if book.is_open:
                book.tally.limit(NO_CEILING, False, book.stop)

    def open(self, rng: Random) -> None:
        """Open a tally somewhere in the tree; now and then with a ceiling."""
        with self.lock:
            above = rng.choice(self.books) if self.books and rng.random() < 0.7 else None
            while above is not None and not above.is_open:
                above = above.parent
            book = Book(self.native.Counter(None if above is None else above.tally), above)
            if self.has_ceilings and rng.random() < 0.2:
                book.tally.limit(rng.choice(SIZES) * 10, rng.random() < 0.3, book.stop)
            self.books.append(book)

    def close(self, rng: Random) -> None:
        """Close one; those below it that are open move up."""
        with self.lock:
            if len(self.books) < 5:
                return
            book = rng.choice(self.books)
            if not book.is_open:
                return
            book.tally.close()
            book.is_open = False
            for other in self.books:
                if other.parent is book and other.is_open:
                    other.parent = book.parent

    def drop(self, rng: Random) -> None:
        """Let go of one that is closed: its blocks still count above it, and its number is free after the last."""
        with self.lock:
            closed = [book for book in self.books if not book.is_open]
            if len(closed) > 20:
                book = rng.choice(closed)
                book.tally = None
                self.books.remove(book)
                self.gone.append(book)

    def make(self, rng: Random) -> None:
        """Make a block."""
        domain, size = rng.choice(self.domains), rng.choice(SIZES) + rng.randrange(3)
        with self.lock:
            if len(self.blocks) >= MAX_BLOCKS or not self.books:
                return
            book = rng.choice(self.books)
            book.own += max(size, SMALLEST)
            tally = book.tally
        zeroed = rng.random() < 0.5
        address = self._charged(domain, tally, lambda: domain.calloc(1, size) if zeroed else domain.malloc(size))
        with self.lock:
            if address:
                self.blocks.append((domain, address, size, book))
            else:
                self._note_refusal()
                book.own -= max(size, SMALLEST)

    def resize(self, rng: Random) -> None:
        """Give a block another size, charged to somebody else; or fail to."""
        with self.lock:
            if not self.blocks or not self.books:
                return
            domain, address, size, book = self._take(rng)
            heir = rng.choice(self.books)
            tally = heir.tally
        if rng.random() < 0.1:
            assert not self._charged(domain, tally, lambda: domain.realloc(address, 2**62))
            with self.lock:
                self.blocks.append((domain, address, size, book))
            return
        other = rng.choice(SIZES)
        made = self._charged(domain, tally, lambda: domain.realloc(address, other))
        with self.lock:
            if not made:
                self._note_refusal()
                self.blocks.append((domain, address, size, book))
                return
            book.own -= max(size, SMALLEST)
            heir.own += max(other, SMALLEST)
            self.blocks.append((domain, made, other, heir))

    def free(self, rng: Random) -> None:
        """Free a block in somebody else's turn."""
        with self.lock:
            if not self.blocks or not self.books:
                return
            domain, address, size, book = self._take(rng)
            tally = rng.choice(self.books).tally
        self._charged(domain, tally, lambda: domain.free(address))
        with self.lock:
            book.own -= max(size, SMALLEST)

    def _note_refusal(self) -> None:
        assert self.has_ceilings, "a block was refused, and nobody has a budget"
        self.refused += 1

    def _take(self, rng: Random) -> tuple[Domain, int, int, Book]:
        number = rng.randrange(len(self.blocks))
        self.blocks[number], self.blocks[-1] = self.blocks[-1], self.blocks[number]
        return self.blocks.pop()

    def _charged(self, domain: Domain, tally: Any, act: Callable[[], int | None]) -> int:
        self.acts += 1
        if domain.is_bare:
            with self.gate.passing():
                self.native.switch(tally)
                address = act()
                self.native.switch(None)
        else:
            self.native.switch(tally)
            address = act()
            self.native.switch(None)
        return (address or 0) + 0  # a new int: the one that ctypes made is the owner's

    def check(self) -> None:
        """Compare the books with the figures; for a moment at which nothing else runs."""
        below: dict[int, int] = {}
        self.gone = [book for book in self.gone if book.own]
        for book in self.books + self.gone:
            above: Book | None = book
            while above is not None:
                below[id(above)] = below.get(id(above), 0) + book.own
                above = above.parent
        for book in self.books:
            live, peak, allocated = book.tally.read()
            more = live - below[id(book)]
            assert 0 <= more <= LEFT_BEHIND, f"live bytes are {live:,}, the books say {below[id(book)]:,}"
            assert live <= peak <= allocated, (live, peak, allocated)

    def clear(self) -> None:
        """Free every block, and see that nothing is left."""
        for domain, address, size, book in self.blocks:
            domain.free(address)
            book.own -= max(size, SMALLEST)
        self.blocks.clear()
        self.check()
        assert not any(book.own for book in self.books + self.gone)


class Gate:
    """Keeps `tracemalloc.start` and `stop` apart from calls without the GIL.

    tracemalloc itself does not bear them at once: what such a call has begun may end when its tables are gone
    (python/cpython#128679, in 3.13 until 3.13.2).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passing = 0
        self._is_shut = False

    def passing(self) -> "_Passing":
        """Be let through, together with others."""
        return _Passing(self)

    def enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self._passing += 1

    def leave(self) -> None:
        with self._changed:
            self._passing -= 1
            self._changed.notify_all()

    def alone(self, act: Callable[[], object]) -> None:
        """Do this while nobody passes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self._is_shut = True
            self._changed.wait_for(lambda: not self._passing)
        try:
            act()
        finally:
            with self._changed:
                self._is_shut = False
                self._changed.notify_all()


class _Passing:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.enter()

    def __exit__(self, *_: object) -> None:
        self._gate.leave()
