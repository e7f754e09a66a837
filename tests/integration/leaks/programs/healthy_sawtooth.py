"""A batch is gathered for some seconds and written all at once."""

from _shape import play

VERDICT = "none"
OWNER = ""

batch: list[dict[str, object]] = []


def step(leaks: bool) -> None:
    batch.extend({"number": number, "body": bytes(2_000)} for number in range(20))
    if len(batch) >= 1_200:
        batch.clear()


if __name__ == "__main__":
    play(step)
