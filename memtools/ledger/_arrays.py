"""Count what numpy's arrays hold, for whoever asks for it: numpy has an allocator of its own.

Covers: meeting numpy, and in which contexts its arrays are counted. Leaves to others: the handler itself (NEP 49,
`native/arrays.c`), asking for it (`_installing`).

numpy keeps the handler in a context variable, so it is set where it is asked for, and from then on wherever an owner is
opened: in tasks that are older, and in other threads. It is only taken out of the context that took it out; elsewhere
it stays, and passes through while nobody counts. Arrays from before are not counted, and freed by whoever made them.
"""

import importlib
from typing import Any, Final

from memtools.errors import ConfigError, MissingExtraError

# Where numpy publishes its C functions: since 2.0, and before.
_MODULES: Final = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")


class _Askers:
    """How many installations want arrays to be counted."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


_askers = _Askers()


def begin_to_count() -> None:
    """Count arrays from now on.

    Raises:
        MissingExtraError: without numpy.
        ConfigError: where numpy is older than 1.22 or cannot be talked to.
    """
    from memtools.ledger import _native  # the caller has made sure that it is there

    try:
        _native.meet_numpy(_find_functions())
        _native.follow_arrays(True)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ConfigError("numpy", True, f"it with numpy 1.22 or later; here {error}") from error
    _askers.count += 1
    _native.go_long(True)  # each opening sets the handler


def end_to_count() -> None:
    """Count arrays no more, in this context and wherever it was not set yet; what is counted is credited when freed."""
    from memtools.ledger import _native

    _askers.count -= 1
    if not _askers.count:
        _native.go_long(False)
        _native.follow_arrays(False)


def are_counted() -> bool:
    """Return whether arrays are to be counted."""
    return _askers.count > 0


def _find_functions() -> object:
    try:
        importlib.import_module("numpy")
    except ImportError as error:
        raise MissingExtraError("numpy", "numpy") from error
    for name in _MODULES:
        try:
            module: Any = importlib.import_module(name)  # Any: numpy is met at run time only
        except ImportError:
            continue
        return module._ARRAY_API
    raise AttributeError("its table of functions is not where it used to be")
