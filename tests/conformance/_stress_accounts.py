"""Blocks from the allocators' own functions, and a model of what each counter should hold, to the byte."""

import ctypes
import threading
from collections.abc import Callable
from random import Random
from typing import Any

MIN_COUNTED = 16  # what a block counts at least
# What calls through ctypes leave behind in the interpreter's free lists, charged to the first owner that made them.
FREE_LIST_SLACK = 16_384
MAX_BLOCKS = 4_000
NO_LIMIT = 2**63 - 1
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


class ModelledCounter:
    """What one counter should hold; `own` is the bytes of its own blocks."""

    def __init__(self, counter: Any, parent: "ModelledCounter | None") -> None:
        self.counter = counter
        self.parent = parent
        self.own = 0
        self.is_open = True
        self.checks = 0  # how often `enforce` was called

    def enforce(self, used_bytes: int, thread: int, is_refused: bool) -> object:
        """Decide as an enforcer: raise nothing, or be called again."""
        self.checks += 1
        return None if self.checks % 3 else NotImplemented


class Model:
    """All modelled counters and all blocks. The lock guards the lists, never the calls of the allocator."""

    def __init__(self, native: Any, gate: "Gate") -> None:
        self.native = native
        self.gate = gate
        self.lock = threading.RLock()
        self.modelled: list[ModelledCounter] = []
        self.dropped: list[ModelledCounter] = []  # dropped, perhaps with blocks
        self.blocks: list[tuple[Domain, int, int, ModelledCounter]] = []
        self.domains = [
            Domain("PyMem_Raw"), Domain("PyMem_Raw", bare=True), Domain("PyMem_"), Domain("PyObject_"),
        ]  # fmt: skip
        self.acts = 0
        self.has_limits = False
        self.refused = 0

    def lift_limits(self) -> None:
        """Set all limits out of reach."""
        for model in self.modelled:
            if model.is_open:
                model.counter.set_limit(NO_LIMIT, False, model.enforce)

    def open(self, rng: Random) -> None:
        """Open a counter somewhere in the tree; now and then with a limit."""
        with self.lock:
            above = rng.choice(self.modelled) if self.modelled and rng.random() < 0.7 else None
            while above is not None and not above.is_open:
                above = above.parent
            model = ModelledCounter(self.native.Counter(None if above is None else above.counter), above)
            if self.has_limits and rng.random() < 0.2:
                model.counter.set_limit(rng.choice(SIZES) * 10, rng.random() < 0.3, model.enforce)
            self.modelled.append(model)

    def close(self, rng: Random) -> None:
        """Close one; its open children get its parent."""
        with self.lock:
            if len(self.modelled) < 5:
                return
            model = rng.choice(self.modelled)
            if not model.is_open:
                return
            model.counter.close()
            model.is_open = False
            for other in self.modelled:
                if other.parent is model and other.is_open:
                    other.parent = model.parent

    def drop(self, rng: Random) -> None:
        """Drop a closed one: its blocks still count for its ancestors, and its number is free after the last."""
        with self.lock:
            closed = [model for model in self.modelled if not model.is_open]
            if len(closed) > 20:
                model = rng.choice(closed)
                model.counter = None
                self.modelled.remove(model)
                self.dropped.append(model)

    def make(self, rng: Random) -> None:
        """Make a block."""
        domain, size = rng.choice(self.domains), rng.choice(SIZES) + rng.randrange(3)
        with self.lock:
            if len(self.blocks) >= MAX_BLOCKS or not self.modelled:
                return
            model = rng.choice(self.modelled)
            model.own += max(size, MIN_COUNTED)
            counter = model.counter
        zeroed = rng.random() < 0.5
        address = self._charged(domain, counter, lambda: domain.calloc(1, size) if zeroed else domain.malloc(size))
        with self.lock:
            if address:
                self.blocks.append((domain, address, size, model))
            else:
                self._count_refusal()
                model.own -= max(size, MIN_COUNTED)

    def resize(self, rng: Random) -> None:
        """Resize a block and charge it to another counter; or fail to."""
        with self.lock:
            if not self.blocks or not self.modelled:
                return
            domain, address, size, model = self._pop_random(rng)
            target = rng.choice(self.modelled)
            counter = target.counter
        if rng.random() < 0.1:
            assert not self._charged(domain, counter, lambda: domain.realloc(address, 2**62))
            with self.lock:
                self.blocks.append((domain, address, size, model))
            return
        other = rng.choice(SIZES)
        made = self._charged(domain, counter, lambda: domain.realloc(address, other))
        with self.lock:
            if not made:
                self._count_refusal()
                self.blocks.append((domain, address, size, model))
                return
            model.own -= max(size, MIN_COUNTED)
            target.own += max(other, MIN_COUNTED)
            self.blocks.append((domain, made, other, target))

    def free(self, rng: Random) -> None:
        """Free a block while another counter is the current one."""
        with self.lock:
            if not self.blocks or not self.modelled:
                return
            domain, address, size, model = self._pop_random(rng)
            counter = rng.choice(self.modelled).counter
        self._charged(domain, counter, lambda: domain.free(address))
        with self.lock:
            model.own -= max(size, MIN_COUNTED)

    def _count_refusal(self) -> None:
        assert self.has_limits, "a block was refused, and no counter has a limit"
        self.refused += 1

    def _pop_random(self, rng: Random) -> tuple[Domain, int, int, ModelledCounter]:
        number = rng.randrange(len(self.blocks))
        self.blocks[number], self.blocks[-1] = self.blocks[-1], self.blocks[number]
        return self.blocks.pop()

    def _charged(self, domain: Domain, counter: Any, act: Callable[[], int | None]) -> int:
        self.acts += 1
        if domain.is_bare:
            with self.gate.passing():
                self.native.switch(counter)
                address = act()
                self.native.switch(None)
        else:
            self.native.switch(counter)
            address = act()
            self.native.switch(None)
        return (address or 0) + 0  # a new int: the one that ctypes made is the owner's

    def check(self) -> None:
        """Compare the model with the figures, at a moment at which nothing else runs."""
        below: dict[int, int] = {}
        self.dropped = [model for model in self.dropped if model.own]
        for model in self.modelled + self.dropped:
            above: ModelledCounter | None = model
            while above is not None:
                below[id(above)] = below.get(id(above), 0) + model.own
                above = above.parent
        for model in self.modelled:
            live, peak, allocated = model.counter.read()
            more = live - below[id(model)]
            assert 0 <= more <= FREE_LIST_SLACK, f"live bytes are {live:,}, the model says {below[id(model)]:,}"
            assert live <= peak <= allocated, (live, peak, allocated)

    def clear(self) -> None:
        """Free every block, and check that nothing is left."""
        for domain, address, size, model in self.blocks:
            domain.free(address)
            model.own -= max(size, MIN_COUNTED)
        self.blocks.clear()
        self.check()
        assert not any(model.own for model in self.modelled + self.dropped)


class Gate:
    """Keeps `tracemalloc.start` and `stop` apart from calls without the GIL.

    tracemalloc itself breaks when they overlap: such a call may end when its tables are freed
    (python/cpython#128679, in 3.13 until 3.13.2).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passing = 0
        self._is_shut = False

    def passing(self) -> "_Passing":
        """Return a context in which the gate is open, for any number of threads at once."""
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
        """Call `act` while no thread passes."""
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
