"""A record is what a frozen dataclass with slots is, for less at import."""

import copy
import dataclasses
import inspect
import pickle

import pytest

from memtools._records import record


@record
class Fact:
    """A fact."""

    name: str
    size: int = 3

    @property
    def doubled(self) -> int:
        return 2 * self.size


@dataclasses.dataclass(frozen=True, slots=True)
class Twin:
    name: str
    size: int = 3


def test_it_is_made_shown_compared_and_hashed_as_a_dataclass():
    assert repr(Fact("a")) == repr(Twin("a")).replace("Twin", "Fact")
    assert Fact("a") == Fact("a", 3)
    assert Fact("a") != Fact("a", 4)
    assert Fact("a") != Twin("a")
    assert hash(Fact("a")) == hash(Fact("a", 3))
    assert str(inspect.signature(Fact)) == str(inspect.signature(Twin))
    assert Fact("a").doubled == 6
    assert Fact.__doc__ == "A fact."
    with pytest.raises(TypeError):
        Fact()


def test_it_cannot_be_changed():
    fact = Fact("a")

    with pytest.raises(dataclasses.FrozenInstanceError, match="size"):
        fact.size = 4
    with pytest.raises(dataclasses.FrozenInstanceError, match="size"):
        del fact.size
    with pytest.raises(dataclasses.FrozenInstanceError, match="more"):
        fact.more = 1
    assert not hasattr(fact, "__dict__")


def test_dataclasses_takes_it_for_one_of_its_own():
    fact = Fact("a")

    assert dataclasses.is_dataclass(fact)
    assert dataclasses.asdict(fact) == {"name": "a", "size": 3}
    assert dataclasses.astuple(fact) == ("a", 3)
    assert dataclasses.replace(fact, size=5) == Fact("a", 5)
    assert [field.name for field in dataclasses.fields(Fact)] == ["name", "size"]


def test_it_is_copied_pickled_and_matched():
    fact = Fact("a", 7)

    assert copy.copy(fact) == copy.deepcopy(fact) == pickle.loads(pickle.dumps(fact)) == fact
    match fact:
        case Fact(name, size):
            assert (name, size) == ("a", 7)
        case _:
            raise AssertionError("it did not match")
