"""Places in a code object where an exception may be raised, and places that belong to a clean-up.

An exception that is raised before an instruction is handled by the handler of that instruction. Two kinds of place are
safe with every supported Python, because no block has been entered or left there whose handler does not cover it: the
target of a backward jump, and the beginning of a function. A runaway passes one of them again and again.

Instructions that clean up are found by their source position. The compiler writes the body of a `finally` and the exit
of a `with` twice, into the handler and behind the block, and both copies have the position of the source. So an
instruction is part of a clean-up if it is inside a handler or has the position of one that is. Where the program runs
without columns (`-X no_debug_ranges`), lines are compared, which finds too many and none too few.
"""

import opcode
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType
from typing import Final, NamedTuple

# Functions whose beginning or end is the clean-up of their caller.
CONTEXT_NAMES: Final = frozenset({"__enter__", "__exit__", "__aenter__", "__aexit__"})

# What coroutines and generators say of their frame, and of what they wait for.
_SUSPENDED: Final = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))

_OPCODES: Final = opcode.opmap
_NAMES: Final = opcode.opname
_RELATIVE_JUMPS: Final = frozenset(opcode.hasjrel)
# The jump of an `await` goes back to where a coroutine waits, which would be abandoned in the middle of its own blocks.
_BACKWARD_JUMPS: Final = frozenset(
    op for op in _RELATIVE_JUMPS if "BACKWARD" in _NAMES[op] and "NO_INTERRUPT" not in _NAMES[op]
)
_ALL_BACKWARD_JUMPS: Final = frozenset(op for op in _RELATIVE_JUMPS if "BACKWARD" in _NAMES[op])
_UNCONDITIONAL: Final = frozenset(
    op for name, op in _OPCODES.items() if name.startswith(("JUMP_FORWARD", "JUMP_BACKWARD"))
)
_ENDS: Final = frozenset(
    op for name, op in _OPCODES.items() if name in ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE")
)
# A `with` that is being entered or left, whatever its position.
_CONTEXT_OPCODES: Final = frozenset(
    op
    for name, op in _OPCODES.items()
    if name in ("BEFORE_WITH", "BEFORE_ASYNC_WITH", "WITH_EXCEPT_START", "LOAD_SPECIAL")
)
_PUSH_EXC_INFO: Final = _OPCODES["PUSH_EXC_INFO"]
_POP_EXCEPT: Final = _OPCODES["POP_EXCEPT"]
_EXTENDED_ARG: Final = _OPCODES["EXTENDED_ARG"]
_RESUME: Final = _OPCODES["RESUME"]
_NOP: Final = _OPCODES["NOP"]
# A function that is called here is called for an object that is freed, or between two instructions: a finaliser, a
# `weakref` callback, a signal handler. What it raises is dropped, or raised where a handler may be passed by.
_IMPLICIT_CALLERS: Final = frozenset(
    op
    for name, op in _OPCODES.items()
    if name.startswith(("STORE_FAST", "STORE_DEREF", "DELETE_FAST", "DELETE_DEREF", "DELETE_NAME", "DELETE_GLOBAL"))
    or name in ("POP_TOP", "RETURN_VALUE", "END_FOR", "POP_ITER", "RESUME", "JUMP_BACKWARD", "POP_EXCEPT")
)


class CodeMap(NamedTuple):
    """What `map_code` finds; offsets are in bytes, as `frame.f_lasti`.

    Attributes:
        loop_heads: targets of backward jumps.
        starts: the first instruction of the function.
        handlers: where the program's own handlers begin.
        passing: handlers that the compiler adds to a comprehension, a generator or an `await`, and that raise again.
        protected: ranges from offset to offset whose instructions have a handler that is the program's own.
        cleanup: offsets that belong to a clean-up.
        implicit: offsets at which only finalisers and callbacks are called.
    """

    loop_heads: frozenset[int]
    starts: frozenset[int]
    handlers: frozenset[int]
    passing: frozenset[int]
    protected: tuple[tuple[int, int], ...]
    cleanup: frozenset[int]
    implicit: frozenset[int]

    def is_handled(self, offset: int) -> bool:
        """Return whether what is raised at this offset comes to a handler of this function."""
        return any(start <= offset < end for start, end in self.protected)


class _Instruction(NamedTuple):
    offset: int
    opcode: int
    argument: int
    next: int  # the offset behind it and its caches

    @property
    def target(self) -> int | None:
        if self.opcode not in _RELATIVE_JUMPS:
            return None
        change = 2 * self.argument
        return self.next - change if self.opcode in _ALL_BACKWARD_JUMPS else self.next + change


@lru_cache(maxsize=256)
def map_code(code: CodeType) -> CodeMap:
    """Return the places in the code; takes microseconds for each instruction, and is remembered."""
    instructions = list(_decode(code.co_code))
    by_offset = {instruction.offset: instruction for instruction in instructions}
    entries = list(_exception_table(code))
    depths = {entry.target: entry.depth for entry in entries if by_offset[entry.target].opcode == _PUSH_EXC_INFO}
    handlers = frozenset(depths)
    inside = _handler_instructions(by_offset, [entry for entry in entries if entry.target in handlers], depths)

    positions = list(code.co_positions())
    of_handlers = {positions[offset // 2] for offset in inside if positions[offset // 2][0] is not None}
    cleanup: set[int] = set()
    implicit: set[int] = set()
    loop_heads: set[int] = set()
    starts: set[int] = set()
    for instruction in instructions:
        offsets = range(instruction.offset, instruction.next, 2)
        if (
            instruction.offset in inside
            or positions[instruction.offset // 2] in of_handlers
            or instruction.opcode in _CONTEXT_OPCODES
        ):
            cleanup.update(offsets)
        if instruction.opcode in _IMPLICIT_CALLERS:
            implicit.update(offsets)
        if instruction.opcode in _BACKWARD_JUMPS and instruction.target is not None:
            loop_heads.update(_first_at(by_offset, instruction.target))
        if instruction.opcode == _RESUME and instruction.argument & 3 == 0 and not starts:
            starts.update(_first_at(by_offset, instruction.next))
    return CodeMap(
        frozenset(loop_heads),
        frozenset(starts),
        handlers,
        frozenset(
            offset
            for entry in entries
            if entry.target not in handlers
            for offset in _straight_on(by_offset, entry.target)
        ),
        tuple((entry.start, entry.end) for entry in entries if entry.target in handlers),
        frozenset(cleanup),
        frozenset(implicit),
    )


def waits_in_cleanup(coroutine: object) -> bool:
    """Return whether a suspended coroutine, or one that it awaits, waits in a clean-up."""
    while coroutine is not None:
        awaited: object = None
        for frame_name, awaited_name in _SUSPENDED:
            frame = getattr(coroutine, frame_name, None)
            if not isinstance(frame, FrameType):
                continue
            if frame.f_code.co_name in CONTEXT_NAMES or frame.f_lasti in map_code(frame.f_code).cleanup:
                return True
            awaited = getattr(coroutine, awaited_name, None)
        coroutine = awaited
    return False


def _decode(raw: bytes) -> Iterator[_Instruction]:
    argument = 0
    offset = 0
    while offset < len(raw):
        op = raw[offset]
        after = offset + 2
        while after < len(raw) and raw[after] == 0:  # CACHE
            after += 2
        argument = argument << 8 | raw[offset + 1]
        yield _Instruction(offset, op, argument, after)
        if op != _EXTENDED_ARG:
            argument = 0
        offset = after


class _Entry(NamedTuple):
    start: int
    end: int
    target: int
    depth: int  # of the stack, which the handler begins with


def _exception_table(code: CodeType) -> Iterator[_Entry]:
    """Yield the protected ranges and their handlers (see Objects/exception_handling_notes.txt of CPython)."""
    units = iter(code.co_exceptiontable)

    def read(first: int) -> int:
        value = first & 63
        while first & 64:
            first = next(units)
            value = value << 6 | first & 63
        return value

    for first in units:
        start = read(first) * 2
        length = read(next(units)) * 2
        target = read(next(units)) * 2
        depth = read(next(units)) >> 1
        yield _Entry(start, start + length, target, depth)


def _first_at(by_offset: dict[int, _Instruction], offset: int) -> Iterator[int]:
    """Yield the offset of the first instruction from there that does something, and those of its prefixes.

    A NOP, which stands for a line without code, such as `try:`, may be outside of the range of every handler.
    """
    while (instruction := by_offset.get(offset)) is not None:
        if instruction.opcode != _NOP:
            yield offset
            if instruction.opcode != _EXTENDED_ARG:
                return
        offset = instruction.next


def _straight_on(by_offset: dict[int, _Instruction], offset: int) -> Iterator[int]:
    """Yield the offsets from one on to the next jump or end."""
    while (instruction := by_offset.get(offset)) is not None:
        yield offset
        if instruction.target is not None or instruction.opcode in _ENDS:
            return
        offset = instruction.next


def _handler_instructions(
    by_offset: dict[int, _Instruction], entries: list[_Entry], depths: dict[int, int]
) -> set[int]:
    """Return the offsets of all that runs between the beginning of a handler and its end."""
    regions: dict[int, set[int]] = {}
    behind: dict[int, set[int]] = {}
    for handler in depths:
        regions[handler], behind[handler] = _follow(by_offset, handler)
    # Where a handler contains a `try` of its own, what follows that one's handler is part of the outer handler. The
    # inner one begins with a deeper stack: the handler that is outside of both begins with a lower one.
    has_changed = True
    while has_changed:
        has_changed = False
        for start, end, inner, depth in entries:
            for outer, region in regions.items():
                if depth <= depths[outer] or behind[inner] <= region:
                    continue
                protects = any(start <= offset < end and offset not in regions[inner] for offset in region)
                if protects:
                    for offset in behind[inner] - region:
                        found, ends = _follow(by_offset, offset)
                        region |= found
                        behind[outer] |= ends
                        has_changed = True
    return {offset for region in regions.values() for offset in region}


def _follow(by_offset: dict[int, _Instruction], first: int) -> tuple[set[int], set[int]]:
    """Return the offsets from one on to the end of the handler, and the offsets that are reached behind it."""
    found: set[int] = set()
    behind: set[int] = set()
    waiting = [first]
    while waiting:
        offset = waiting.pop()
        instruction = by_offset.get(offset)
        if instruction is None or offset in found:
            continue
        found.add(offset)
        if instruction.opcode == _POP_EXCEPT:
            behind.add(instruction.next)
            continue
        if instruction.target is not None:
            waiting.append(instruction.target)
        if instruction.opcode not in _UNCONDITIONAL and instruction.opcode not in _ENDS:
            waiting.append(instruction.next)
    return found, behind
