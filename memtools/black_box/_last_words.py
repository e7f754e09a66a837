"""Last words: what a process says of itself while its memory runs short, before it may be killed.

At the first level the long containers are counted, at the next one again: what has grown between the two says more than
what is longest. `memtools.heap.heap_census` would see more, but it needs memory itself, some 50 bytes for each object
of the heap, and here that may be what is left.
"""

import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from heapq import nlargest
from types import FrameType
from typing import Any, Final, TypeVar

from memtools._records import record
from memtools._text import printable
from memtools._threads import frame_of_thread, running_threads
from memtools.heap._inspect import LENGTHS, OwnDict, class_items, container_kind, instance_dict, real_type, type_name
from memtools.readings import Reading
from memtools.units import format_size

K = TypeVar("K")

_MAX_THREADS: Final = 50
_MAX_FRAMES: Final = 12
_MAX_OWNERS: Final = 10
_MAX_SHOWN: Final = 5
_MIN_LENGTH: Final = 1000  # items: the note of a container takes a hundredth of its own bytes
_MIN_GROWTH: Final = 1000  # items or objects
_MIN_NAMED_LENGTH: Final = 64  # items of a container that is found by its name
_MIN_NAMED_GROWTH: Final = 16  # any program grows by fewer meanwhile
_POINTER_BYTES: Final = 8  # of the list of all objects that the collector returns
_LEAST_FREE_BYTES: Final = 4 << 20
_MAX_BLOCKS: Final = 20_000_000  # a longer count would hold up the program for more than a second or two
# Types that grow along with any container or instance, and say nothing by themselves.
_EVERYDAY: Final = frozenset(
    ("dict", "list", "tuple", "set", "cell", "function", "frame", "method", "weakref.ReferenceType")
)


class LastWords:
    """The words of one rise from the normal level: a short text at once, and a longer one after the count."""

    def __init__(self) -> None:
        self._counted: ContainerCount | None = None

    def reset(self) -> None:
        """Forget the count: the level is normal again."""
        self._counted = None

    def short(self, level: str, reading: Reading, owners: Sequence[tuple[str, int]]) -> str:
        """Return what is known at once: the figure, the owners, the stacks of all threads."""
        at = time.strftime("%H:%M:%S")
        lines = [f"at {at}, {level}: {reading}"]
        if owners:
            held = ", ".join(f"{printable(name, 200)} {format_size(size)}" for name, size in owners[:_MAX_OWNERS])
            lines.append(f"largest owners: {held}")
        return "\n".join([*lines, *stack_lines(_thread_names())])

    def heap(self, reading: Reading) -> str:
        """Return which containers have grown since the first count of this rise, or which are longest."""
        if not may_count(reading):
            return "containers: not counted, too little memory is left for it"
        counted = count_containers()
        before, self._counted = self._counted, counted
        if before is None:
            return f"longest containers: {', '.join(longest_containers(counted)) or f'none has {_MIN_LENGTH:,} items'}"
        grown = ", ".join(grown_containers(before, counted)) or "no container, no type"
        return f"growing since the first warning: {grown}"


def longest_containers(counted: "ContainerCount") -> list[str]:
    """Return the containers that were longest at a count, by name where they have one."""
    longest = nlargest(_MAX_SHOWN, counted.containers.items(), key=lambda item: item[1][1])
    names = names_of({address for address, _ in longest})
    found = [(length, f"{_called(names, address, kind)} of {length:,}") for address, (kind, length) in longest]
    found += [
        (length, f"{kind} {printable(name, 200)} of {length:,}")
        for name, (kind, length) in counted.variables.items()
        if length >= _MIN_LENGTH
    ]
    return [text for _, text in nlargest(_MAX_SHOWN, found)]


@record
class ContainerCount:
    """The long containers and the objects by type, at one moment; numbers and names, no objects.

    Attributes:
        containers: the name of the type and the length of each container of at least 1,000 items, by address.
        variables: the same of each container of at least 64 items that is a variable of a module, by its name.
        types: how many objects there are of each type.
    """

    containers: dict[int, tuple[str, int]]
    variables: dict[str, tuple[str, int]]
    types: dict[str, int]


def may_count(reading: Reading) -> bool:
    """Return whether there is room for a count below the limit.

    A list of all objects of the collector is made for it; there are no more of these than blocks of Python's
    small-object allocator.
    """
    blocks = sys.getallocatedblocks()
    if blocks > _MAX_BLOCKS:
        return False
    if reading.limit_bytes is None:
        return True
    return reading.limit_bytes - reading.used_bytes > blocks * _POINTER_BYTES + _LEAST_FREE_BYTES


def count_containers() -> ContainerCount:
    """Return the long containers and the types of the objects that the collector tracks.

    No code of an object runs. Dicts of plain values, which the collector does not track, are seen where they are
    variables of a module.
    """
    types: dict[int, Any] = OwnDict()  # by address: a class may have an `__eq__` and a `__hash__` of its own
    found: dict[int, tuple[str, int]] = OwnDict()
    objects = gc.get_objects()
    try:
        counted = Counter(map(id, map(type, objects)))
        types.update((id(real_type(each)), real_type(each)) for each in objects)
        kinds = {address: container_kind(cls) for address, cls in types.items() if cls is not OwnDict}
        for each in objects:
            _add(each, kinds.get(id(real_type(each))), found)
    finally:
        each = None
        objects.clear()
    variables: dict[str, tuple[str, int]] = {}
    for name, value in _variables():
        kind = container_kind(real_type(value))
        length = 0 if kind is None else LENGTHS[kind](value)
        if length >= _MIN_NAMED_LENGTH:
            variables[name] = type_name(real_type(value)), length
            found.pop(id(value), None)
    names = Counter[str]()
    for address, number in counted.items():
        if address in types:
            names[type_name(types[address])] += number
    return ContainerCount(found, variables, names)


def _add(container: Any, kind: type | None, found: dict[int, tuple[str, int]]) -> None:  # Any: any object
    if kind is None:
        return
    length = LENGTHS[kind](container)
    if length >= _MIN_LENGTH:
        found[id(container)] = type_name(real_type(container)), length


def grown_containers(before: ContainerCount, after: ContainerCount) -> list[str]:
    """Return what has grown from one count to another: containers by name, others, types of objects."""
    return [*_grown_variables(before, after), *_grown_containers(before, after), *_grown_types(before, after)]


def _grown_variables(before: ContainerCount, after: ContainerCount) -> list[str]:
    more = {name: length - before.variables.get(name, ("", 0))[1] for name, (_, length) in after.variables.items()}
    return [
        f"{after.variables[name][0]} {printable(name, 200)} +{more[name]:,} to {after.variables[name][1]:,}"
        for name in _most(more, _MIN_NAMED_GROWTH)
    ]


def _grown_containers(before: ContainerCount, after: ContainerCount) -> list[str]:
    known = {address: found for address, found in before.containers.items() if address in after.containers}
    more = {
        address: length - known[address][1]
        for address, (kind, length) in after.containers.items()
        if address in known and known[address][0] == kind
    }
    largest = _most(more, _MIN_GROWTH)
    names = names_of(set(largest))
    shown = [
        f"{_called(names, address, after.containers[address][0])} +{more[address]:,} to "
        f"{after.containers[address][1]:,}"
        for address in largest
    ]
    # Those that are new have hardly ever a name, and there may be thousands of them.
    new = [found for address, found in after.containers.items() if address not in known]
    numbers, items = Counter(kind for kind, _ in new), Counter[str]()
    for kind, length in new:
        items[kind] += length
    return shown + [f"{numbers[kind]:,} new {kind} of {items[kind]:,} items together" for kind in _most(items, 1)]


def _grown_types(before: ContainerCount, after: ContainerCount) -> list[str]:
    more = {name: number - before.types.get(name, 0) for name, number in after.types.items() if name not in _EVERYDAY}
    return [f"{name} +{more[name]:,} objects to {after.types[name]:,}" for name in _most(more, _MIN_GROWTH)]


def _most(growth: Mapping[K, int], minimum: int) -> list[K]:
    return nlargest(_MAX_SHOWN, (key for key in growth if growth[key] >= minimum), key=growth.__getitem__)


def _called(names: Mapping[int, str], address: int, kind: str) -> str:
    return f"{kind} {names[address]}" if address in names else kind


def names_of(addresses: set[int]) -> dict[int, str]:
    """Return the names of objects that are variables of modules, or attributes of these or of classes; no code runs."""
    found: dict[int, str] = {}
    if not addresses:
        return found
    for name, value in _variables():
        if id(value) in addresses:
            found.setdefault(id(value), printable(name, 200))
        inner = class_items(value) if issubclass(real_type(value), type) else instance_dict(value)
        for attribute, held in list((inner or {}).items()):
            if id(held) in addresses:
                found.setdefault(id(held), printable(f"{name}.{attribute}", 200))
    return found


def _variables() -> Iterator[tuple[str, Any]]:  # Any: any object
    modules = list(sys.modules.items())
    # `multiprocessing` gives the main module a second name.
    first = {id(module): name for name, module in reversed(modules)}
    for module_name, module in modules:
        if first[id(module)] != module_name:
            continue
        variables = instance_dict(module) or {}
        for name, value in list(variables.items()):
            if name != "__builtins__":  # of every module
                yield f"{module_name}.{name}", value


def stack_lines(names: Mapping[int, str]) -> list[str]:
    """Return a line for each thread, the innermost call first; no code of the program is called for it.

    Args:
        names: the names of the threads, by their numbers.
    """
    lines: list[str] = []
    for thread in sorted(running_threads())[:_MAX_THREADS]:
        calls = _calls_of(thread)
        if calls:
            lines.append(f"thread {printable(names.get(thread, str(thread)), 60)}: " + " <- ".join(calls))
    return lines


def _calls_of(thread: int) -> list[str]:
    """Return the calls of a thread without those of memtools; none for the monitor's own thread."""
    calls: list[str] = []
    is_of_program = False
    frame = _own_frame() if thread == threading.get_ident() else frame_of_thread(thread)
    while frame is not None and len(calls) < _MAX_FRAMES:
        code = frame.f_code
        if not code.co_filename.startswith(_OWN_FOLDER):
            calls.append(f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})")
            is_of_program = is_of_program or code.co_filename != threading.__file__
        frame = frame.f_back  # no frame is held at the end: it would keep the variables of its function alive
    frame = None
    return calls if is_of_program else []


def _own_frame() -> FrameType | None:
    return sys._getframe()  # pyright: ignore[reportPrivateUsage]  # documented, in spite of its name


_OWN_FOLDER: Final = __file__.rpartition("black_box")[0]


def _thread_names() -> dict[int, str]:
    # Not `threading.enumerate`, whose lock a thread may hold that waits for memory.
    active: dict[int, threading.Thread] = dict(getattr(threading, "_active", {}))
    return {ident: thread.name for ident, thread in active.items()}
