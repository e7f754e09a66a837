"""What a piece of work needs, learned from what it took before.

A file of its own because the adapters to other schedulers learn by it, too.
"""

from collections.abc import Callable, Iterable
from math import ceil
from typing import Any, Final, Protocol, cast

from memtools._records import record
from memtools.errors import ConfigError
from memtools.units import format_size, parse_size

_MIN_RUNS: Final = 5
_SHARE_OF_RUNS: Final = 0.95
_MARGIN: Final = 1.25
_ENDED: Final = "ok"  # the outcome of a call without an exception


@record
class Needs:
    """What is taken for a piece of work.

    Attributes:
        name: of the function, with its module; functions of the same name are taken for one.
        value_bytes: what a call is counted for.
        runs: of how many calls the peak is known: the last ones.
        peak_bytes: the 95th percentile of their peaks; None before the fifth, where `value_bytes` is the default.
        exact: whether the account of each of them was exact.
    """

    name: str
    value_bytes: int
    runs: int
    peak_bytes: int | None
    exact: bool

    def __str__(self) -> str:
        value = format_size(self.value_bytes)
        if self.peak_bytes is None:
            return f"{self.name}: {value}, the default, after {self.runs} runs"
        doubt = "" if self.exact else ", not exact"
        return f"{self.name}: {value}, from a peak of {format_size(self.peak_bytes)} in {self.runs} runs{doubt}"


class _Call(Protocol):
    @property
    def outcome(self) -> str: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def exact(self) -> bool: ...


def learn(name: str, peaks: Iterable[tuple[int, bool]], default_bytes: int) -> Needs:
    """Return the 95th percentile (nearest rank) of the peaks and a quarter more; before the fifth of them the default.

    Args:
        name: of the work.
        peaks: of each run the highest bytes, and whether they are exact.
        default_bytes: what is taken before the fifth.
    """
    known = list(peaks)
    exact = all(is_exact for _, is_exact in known)
    if len(known) < _MIN_RUNS:
        return Needs(name, default_bytes, len(known), None, exact)
    ordered = sorted(peak for peak, _ in known)
    peak_bytes = ordered[ceil(_SHARE_OF_RUNS * len(ordered)) - 1]
    return Needs(name, max(ceil(peak_bytes * _MARGIN), 1), len(known), peak_bytes, exact)


def needs_of(function: Callable[..., Any], *, default: int | str) -> Needs:
    """Return what a call of a function is going to need, by its history: for a lease, an admission or a pick.

    ```python
    from memtools import bounded_history
    from memtools.cluster import needs_of

    @bounded_history(100)
    def build(rows: int) -> list[int]:
        return list(range(rows))

    for _ in range(5):
        build(100_000)
    print(needs_of(build, default="500 MiB"))  # with cluster.lease(needs_of(build, default="500 MiB").value_bytes)
    ```

    It is the 95th percentile of the peaks of the remembered calls that ended without an exception, and a quarter more.
    Each process learns by itself. A peak is what the call allocated, without its arguments, and without what C
    libraries allocate unseen: where `exact` is False, better give a size.

    Cost: sorts the history; some 100 µs for a thousand calls.

    Args:
        function: a function under `memtools.bounded_history`.
        default: what is taken before the fifth such call; a size.

    Raises:
        ConfigError: for a function without a history, one that has a history for each key or object, and for a default
            that is no size above zero.
    """
    default_bytes = parse_size(default, name="default")
    if default_bytes <= 0:
        raise ConfigError("default", default, "a size above zero")
    history: object = getattr(function, "history", None)
    if not isinstance(history, list):
        raise ConfigError("function", function, "a function under memtools.bounded_history, with one history")
    calls = cast("list[_Call]", history[:])
    name = getattr(function, "__qualname__", type(function).__qualname__)
    ended = ((call.peak_bytes, call.exact) for call in calls if call.outcome == _ENDED)
    return learn(f"{function.__module__}.{name}", ended, default_bytes)
