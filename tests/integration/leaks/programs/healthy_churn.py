"""Much is made and dropped in each step."""

from _shape import play

VERDICT = "none"
OWNER = ""


def step(leaks: bool) -> None:
    rows = [{"number": number, "text": "x" * (number % 900)} for number in range(3_000)]
    dict.fromkeys(row["text"] for row in rows)


if __name__ == "__main__":
    play(step)
