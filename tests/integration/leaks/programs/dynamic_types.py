"""A class is made for each schema that comes along, and a registry keeps them."""

from itertools import count

from _shape import play

VERDICT = "python"
OWNER = r"models|Model"

models: dict[str, type] = {}
numbers = count()


class Model:
    pass


def load_schema(leaks: bool) -> None:
    name = f"Model{next(numbers) if leaks else 0}"
    if name not in models:
        models[name] = type(name, (Model,), {f"field_{place}": place for place in range(60)})


def step(leaks: bool) -> None:
    for _ in range(8):
        load_schema(leaks)


if __name__ == "__main__":
    play(step)
