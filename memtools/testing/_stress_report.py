"""What a stress test found: facts, and the forms in which they are shown.

Leaves to others: taking them (`_stress_rounds`), the table (`_stress_text`), the picture (`_stress_picture`).
"""

import os
from collections.abc import Callable
from typing import Final

from memtools.analysis import Answer
from memtools.errors import ConfigError
from memtools.records import as_dict, record
from memtools.testing._reports import LeakReport


@record
class StressRound:
    """One round of a stress test.

    Attributes:
        number: 0 for what there was before the first.
        calls: how many calls it had.
        resident_bytes: what the process held in memory after it.
        live_bytes: what the tested calls had alive after it, beyond what they had before the first round.
        duration_s: from its first call to the end of its last, in seconds.
        p50_s: what half of its calls did not take longer than, in seconds.
        p95_s: the same for 95 % of them.
        p99_s: the same for 99 % of them.
        longest_s: its longest call, in seconds.
    """

    number: int
    calls: int
    resident_bytes: int
    live_bytes: int
    duration_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    longest_s: float


@record
class StressReport:
    """What a stress test found.

    Attributes:
        verdict: what grows, how fast, and who holds it.
        rounds: one after the other; the first, number 0, is what there was before.
        at_once: how many calls ran at the same time.
    """

    verdict: LeakReport
    rounds: tuple[StressRound, ...]
    at_once: int = 1

    @property
    def tested(self) -> str:
        """The name of what was called."""
        return self.verdict.tested

    @property
    def answer(self) -> Answer:
        """Leak, clean or inconclusive."""
        return self.verdict.answer

    @property
    def is_leak(self) -> bool:
        """Whether something grows with each call."""
        return self.verdict.is_leak

    @property
    def calls(self) -> int:
        """How many calls there were, without the warm-up."""
        return sum(one.calls for one in self.rounds)

    def to_text(self, *, width: int | None = None, ascii_only: bool | None = None) -> str:
        """Return the verdict, who holds what grows, and a table of the rounds, for a terminal.

        Args:
            width: columns; by default the terminal's.
            ascii_only: draw with ASCII; by default where standard output cannot do better.
        """
        from memtools.testing._stress_text import stress_text  # loaded by who looks, not by who imports memtools

        return stress_text(self, width=width, ascii_only=ascii_only)

    def to_dict(self) -> dict[str, object]:
        """Return everything as a dict that JSON can hold."""
        return {
            "tested": self.tested,
            "at_once": self.at_once,
            "verdict": self.verdict.to_dict(),
            "rounds": [as_dict(one) for one in self.rounds],
        }

    def svg(self) -> str:
        """Return the picture as one SVG element: resident and live bytes and latency over the calls."""
        from memtools.testing._stress_picture import stress_svg  # as above

        return stress_svg(self)

    def html(self) -> str:
        """Return a page with the picture, the verdict and the rounds: one file, no script, nothing from the network."""
        from memtools.testing._stress_picture import stress_page  # as above

        return stress_page(self)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `path`, replacing what is there: `.html`, `.svg`, `.json` or `.txt`, by its ending.

        Raises:
            ConfigError: for another ending.
            OSError: when it cannot be written.
        """
        name = os.fspath(path)
        form = _FORMS.get(os.path.splitext(name)[1].lower())
        if form is None:
            raise ConfigError("path", name, f"a name that ends in {', '.join(_FORMS)}")
        with open(name, "w", encoding="utf-8") as file:
            file.write(form(self))

    def _repr_html_(self) -> str:
        return self.svg()

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return (
            f"<StressReport {self.tested!r} {self.answer.value}, {len(self.rounds) - 1} rounds, {self.calls:,} calls>"
        )


def _json(report: StressReport) -> str:
    import json  # as above

    return json.dumps(report.to_dict(), indent=2) + "\n"


_FORMS: Final[dict[str, Callable[[StressReport], str]]] = {
    ".html": StressReport.html,
    ".svg": lambda report: f"{report.svg()}\n",
    ".json": _json,
    ".txt": lambda report: report.to_text(ascii_only=False) + "\n",
}
