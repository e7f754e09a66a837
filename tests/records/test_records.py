"""A record behaves like a frozen dataclass with slots."""

import copy
import dataclasses
import inspect
import pickle

import pytest

from memtools._records import record


@record
class Measurement:
    """A measurement."""

    name: str
    size: int = 3

    @property
    def doubled(self) -> int:
        return 2 * self.size


@dataclasses.dataclass(frozen=True, slots=True)
class PlainDataclass:
    name: str
    size: int = 3


def test_record_behaves_like_a_dataclass():
    assert repr(Measurement("a")) == repr(PlainDataclass("a")).replace("PlainDataclass", "Measurement")
    assert Measurement("a") == Measurement("a", 3)
    assert Measurement("a") != Measurement("a", 4)
    assert Measurement("a") != PlainDataclass("a")
    assert hash(Measurement("a")) == hash(Measurement("a", 3))
    assert str(inspect.signature(Measurement)) == str(inspect.signature(PlainDataclass))
    assert Measurement("a").doubled == 6
    assert Measurement.__doc__ == "A measurement."
    with pytest.raises(TypeError):
        Measurement()


def test_record_is_frozen():
    measurement = Measurement("a")

    with pytest.raises(dataclasses.FrozenInstanceError, match="size"):
        measurement.size = 4
    with pytest.raises(dataclasses.FrozenInstanceError, match="size"):
        del measurement.size
    with pytest.raises(dataclasses.FrozenInstanceError, match="more"):
        measurement.more = 1
    assert not hasattr(measurement, "__dict__")


def test_dataclasses_functions_accept_a_record():
    measurement = Measurement("a")

    assert dataclasses.is_dataclass(measurement)
    assert dataclasses.asdict(measurement) == {"name": "a", "size": 3}
    assert dataclasses.astuple(measurement) == ("a", 3)
    assert dataclasses.replace(measurement, size=5) == Measurement("a", 5)
    assert [field.name for field in dataclasses.fields(Measurement)] == ["name", "size"]


def test_record_is_copied_pickled_and_matched():
    measurement = Measurement("a", 7)

    assert (
        copy.copy(measurement) == copy.deepcopy(measurement) == pickle.loads(pickle.dumps(measurement)) == measurement
    )
    match measurement:
        case Measurement(name, size):
            assert (name, size) == ("a", 7)
        case _:
            raise AssertionError("it did not match")
