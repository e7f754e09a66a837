"""A record behaves like a frozen dataclass with slots."""

import copy
import dataclasses
import inspect
import pickle

import pytest

from memtools._records import record


@record
class Size:
    """A size."""

    name: str
    size: int = 3

    @property
    def doubled(self) -> int:
        return 2 * self.size


@dataclasses.dataclass(frozen=True, slots=True)
class SizeDataclass:
    name: str
    size: int = 3


def test_record_behaves_like_a_dataclass():
    assert repr(Size("a")) == repr(SizeDataclass("a")).replace("SizeDataclass", "Size")
    assert Size("a") == Size("a", 3)
    assert Size("a") != Size("a", 4)
    assert Size("a") != SizeDataclass("a")
    assert hash(Size("a")) == hash(Size("a", 3))
    assert str(inspect.signature(Size)) == str(inspect.signature(SizeDataclass))
    assert Size("a").doubled == 6
    assert Size.__doc__ == "A size."
    with pytest.raises(TypeError):
        Size()


def test_record_is_frozen():
    size = Size("a")

    with pytest.raises(dataclasses.FrozenInstanceError, match="size"):
        size.size = 4
    with pytest.raises(dataclasses.FrozenInstanceError, match="size"):
        del size.size
    with pytest.raises(dataclasses.FrozenInstanceError, match="more"):
        size.more = 1
    assert not hasattr(size, "__dict__")


def test_dataclasses_functions_accept_a_record():
    size = Size("a")

    assert dataclasses.is_dataclass(size)
    assert dataclasses.asdict(size) == {"name": "a", "size": 3}
    assert dataclasses.astuple(size) == ("a", 3)
    assert dataclasses.replace(size, size=5) == Size("a", 5)
    assert [field.name for field in dataclasses.fields(Size)] == ["name", "size"]


def test_record_is_copied_pickled_and_matched():
    size = Size("a", 7)

    assert copy.copy(size) == copy.deepcopy(size) == pickle.loads(pickle.dumps(size)) == size
    match size:
        case Size(name, size):
            assert (name, size) == ("a", 7)
        case _:
            raise AssertionError("it did not match")
