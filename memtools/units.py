"""Parse sizes, counts, durations and choices, and format sizes and durations.

`MB` is 10^6 bytes and `MiB` is 2^20 bytes (IEC 80000-13). A bare number is bytes. Quantities of Kubernetes are sizes
as well: `512Mi`, `500M`, `1e9`. Output is always in binary units.
"""

import re
import sys
from collections.abc import Callable
from typing import TypeGuard

from memtools.errors import ConfigError

_FACTORS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity. Not `m`, a thousandth of a byte.
_QUANTITY_FACTORS = {
    **{suffix: 1000**power for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": 1024**power for power, suffix in enumerate("KMGTPE", 1)},
}
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*|%)\s*")
_QUANTITY = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)(?:([kMGTPE]|[KMGTPE]i)|[eE]\+?([0-9]{1,2}))\s*")
_MILLI = re.compile(r"\s*[0-9.]+m\s*")
_SIZE_FORMS = (
    "bytes as a whole number, or text such as '512 MiB', '1.5 GB', '64 KiB' (B, kB, MB, GB, TB, KiB to TiB), or as in "
    "Kubernetes '512Mi', '1G', '1e9'"
)
_PERCENT_FORM = ", or a share of the effective limit from '0%' to '100%'"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def parse_size(value: object, *, name: str = "size", percent_of: Callable[[], int | None] | None = None) -> int:
    """Return `value` in bytes.

    Args:
        value: bytes as an int (or a float without a fraction), or text such as `"512 MiB"`, or a quantity of Kubernetes
            such as `"512Mi"`.
        name: the name of the argument in the error.
        percent_of: returns the bytes that `"100%"` means, or None if they are not known; without it a percentage is
            refused.

    Raises:
        ConfigError: for anything else: negative, not finite, bool, unknown unit (`"512Mb"`, and `"512m"`, which means
            thousandths in Kubernetes), over 100 %, or a percentage when `percent_of` returns None.
    """
    forms = _SIZE_FORMS + (_PERCENT_FORM if percent_of else "")

    if isinstance(value, str):
        return _parse_text(value, name, forms, percent_of)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(name, value, forms)
    if value < 0 or (isinstance(value, float) and not value.is_integer()):
        raise ConfigError(name, value, forms)
    return int(value)


def _parse_text(value: str, name: str, forms: str, percent_of: Callable[[], int | None] | None) -> int:
    quantity = _QUANTITY.fullmatch(value)
    if quantity is not None:
        digits, suffix, exponent = quantity.groups()
        return _scaled(digits, _QUANTITY_FACTORS[suffix] if suffix else 10 ** int(exponent))
    if _MILLI.fullmatch(value):
        raise ConfigError(name, value, f"{forms}; 'm' is a thousandth there, and 'M' a million")
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ConfigError(name, value, forms)

    number, unit = match.groups()
    if unit == "%" and percent_of is not None:
        if float(number) > 100:
            raise ConfigError(name, value, forms)
        whole = percent_of()
        if whole is None:
            raise ConfigError(name, value, "a size in bytes: no limit is known of which this could be a share")
        return _scaled(number, whole) // 100
    if unit not in _FACTORS:
        raise ConfigError(name, value, forms)
    return _scaled(number, _FACTORS[unit])


def _scaled(number: str, factor: int) -> int:
    # Multiplied as whole numbers: a float would lose bytes above 2**53.
    whole, _, fraction = number.partition(".")
    bytes_ = int(whole) * factor
    return bytes_ + int(fraction) * factor // 10 ** len(fraction) if fraction else bytes_


def parse_count(value: object, *, name: str, minimum: int = 1) -> int:
    """Return `value`, a whole number of at least `minimum`.

    Raises:
        ConfigError: for anything else, bool included.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(name, value, f"a whole number of at least {minimum}")
    return value


def parse_seconds(value: object, *, name: str, above_zero: bool = False) -> float:
    """Return `value` in seconds, finite and not negative.

    Args:
        value: seconds as a number.
        name: the name of the argument in the error.
        above_zero: whether 0 is refused as well.

    Raises:
        ConfigError: for anything else.
    """
    if not _is_amount(value) or (above_zero and value == 0):
        raise ConfigError(
            name, value, f"seconds as a {'number above' if above_zero else 'finite number of at least'} 0"
        )
    return float(value)


def parse_rate(value: object, *, name: str) -> float:
    """Return `value`, which is how many a second: a finite number, 0 for none.

    Raises:
        ConfigError: for anything else.
    """
    if not _is_amount(value):
        raise ConfigError(name, value, "a finite number of at least 0, which is how many a second")
    return float(value)


def _is_amount(value: object) -> TypeGuard[int | float]:
    # Not `isfinite`, which cannot take an int beyond the largest float; nan fails every comparison.
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value <= sys.float_info.max


def parse_choice(value: object, choices: tuple[str, ...], *, name: str) -> str:
    """Return `value`, one of `choices`.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(name, value, " or ".join(repr(choice) for choice in choices))
    return value


def format_size(size_bytes: float) -> str:
    """Return a size with its unit: `512.0 MiB`, `3 B`, `-1.5 KiB`."""
    amount = float(round(size_bytes))
    unit = 0
    # Rounded before it is compared: one byte short of a MiB is "1.0 MiB", not "1024.0 KiB".
    while unit < len(_UNITS) - 1 and round(abs(amount), 1) >= 1024:
        amount /= 1024
        unit += 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{amount:.0f} B"


def format_duration(seconds: float) -> str:
    """Return a time in words for a sentence: `45 s`, `20 min`, `3 h 40`, `27 h`, `4 d`."""
    if round(seconds) < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 10 and rest:
        return f"{hours} h {rest:02}"
    hours = round(minutes / 60)
    return f"{hours} h" if hours < 72 else f"{round(hours / 24)} d"
