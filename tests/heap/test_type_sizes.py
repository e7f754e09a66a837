"""The heap by type: how close the estimate is, and that no code of a program runs."""

import sys

import pytest

from memtools.heap._type_sizes import TypeSize, sizes_by_type


class Row:
    """An object with slots: its size is known."""

    __slots__ = ("number", "text")

    def __init__(self, number: int) -> None:
        self.number = number
        self.text = f"row {number}"


class Hostile:
    """An object whose methods must not be called."""

    def __sizeof__(self) -> int:
        raise AssertionError("code of the program ran")

    def __repr__(self) -> str:
        raise AssertionError("code of the program ran")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("code of the program ran")

    __hash__ = None  # type: ignore[assignment]


def _size_of(name: str) -> TypeSize:
    found = [one for one in sizes_by_type(10_000) if one.name.endswith(name)]
    return found[0] if found else TypeSize(name, 0, 0)


def test_instances_are_counted_exactly() -> None:
    kept = [Row(number) for number in range(5_000)]

    found = _size_of("Row")

    assert found.objects == 5_000
    assert found.size_bytes == 5_000 * sys.getsizeof(kept[0])


def test_untracked_objects_with_many_references_count_once() -> None:
    before = _size_of("bytes")
    blocks = [bytes(1_000 + number % 7) for number in range(3_000)]
    again = [list(blocks) for _ in range(4)]

    after = _size_of("bytes")

    assert after.objects - before.objects == pytest.approx(3_000, rel=0.1)
    assert after.size_bytes - before.size_bytes == pytest.approx(sum(map(sys.getsizeof, blocks)), rel=0.1)
    del again


def test_objects_in_untracked_tables_are_found() -> None:
    before = _size_of("bytearray").size_bytes
    table = {"big": (1, bytearray(4_000_000))}

    assert _size_of("bytearray").size_bytes - before == pytest.approx(4_000_000, rel=0.1)
    del table


def test_no_code_of_the_program_runs() -> None:
    kept = [Hostile() for _ in range(100)]

    assert _size_of("Hostile").objects == len(kept)


def test_smallest_types_are_summed_up() -> None:
    found = sizes_by_type(3)

    assert len(found) == 4
    assert found[3].name.endswith(" other types")
    assert [one.size_bytes for one in found[:3]] == sorted((one.size_bytes for one in found[:3]), reverse=True)
    assert found[0].to_dict() == {
        "name": found[0].name,
        "objects": found[0].objects,
        "size_bytes": found[0].size_bytes,
    }
