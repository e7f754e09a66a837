"""Checked settings, from arguments and from the environment.

Nothing is read when this module is imported. memtools reads the variables where it needs them; this record lets a
program check them at its start, and take them from another source.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Final, Literal, Self, TypedDict, cast

from memtools._records import as_dict, record
from memtools.errors import ConfigError, ConfigWarning
from memtools.units import parse_choice, parse_count, parse_rate, parse_seconds, parse_size

_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")
PREFIX: Final = "MEMTOOLS_"
METERS: Final = ("native", "tracemalloc", "rss")
SENSITIVITIES: Final = ("low", "balanced", "high")  # of forecasts


class MonitorSettings(TypedDict, total=False):
    """The arguments of `MemoryMonitor` that a `Config` can give."""

    warning: int | str
    critical: int | str
    limit: int | str
    cleanup_interval: float
    sample_every: int
    exhausted_after: float
    min_flow: float
    cluster: str
    black_box: str
    forecast: Literal["low", "balanced", "high"]


@record
class Config:
    """Checked settings of memtools. None means "not set": the class or function that takes the setting has a default.

    ```python
    config = Config.from_env(warning="60%", environ={"MEMTOOLS_CRITICAL": "80%"})
    assert config.monitor() == {"warning": "60%", "critical": "80%"}
    ```

    Attributes:
        enabled: whether decorators do anything.
        meter: `"native"`, `"tracemalloc"` or `"rss"`.
        native: whether the C extensions may be used; memtools itself reads only the environment variable, while it is
            imported.
        limit: the memory that the process may use: bytes, a size, or a share of the system's limit.
        warning: the monitor's threshold: bytes, a size, or a share of the effective limit.
        critical: the same for its higher level.
        cleanup_interval: seconds between the monitor's minor collections; 0 for none.
        sample_every: operations between two samples of the monitor.
        exhausted_after: seconds at `CRITICAL` after which memory counts as exhausted.
        min_flow: how much work begins each second while memory is critical; 0 for none.
        cluster: the URL of the pool of processes that monitors join, as for `memtools.cluster.join`. It may hold a
            password, so it is not shown.
        black_box: the folder of the monitor's black box.
        forecast: `"low"`, `"balanced"` or `"high"`: how early the monitor forecasts when the limit is reached.

    Raises:
        ConfigError: at construction, for an invalid value, with the name of the field.
    """

    enabled: bool | None = None
    meter: str | None = None
    native: bool | None = None
    limit: int | str | None = None
    warning: int | str | None = None
    critical: int | str | None = None
    cleanup_interval: float | None = None
    sample_every: int | None = None
    exhausted_after: float | None = None
    min_flow: float | None = None
    cluster: str | None = None
    black_box: str | None = None
    forecast: str | None = None

    def __new__(cls, *values: object, **named: object) -> Self:
        """Check the values before the record is made."""
        _validate(dict(zip(_PARSERS, values, strict=False)) | named, lambda name: name)
        return object.__new__(cls)

    @classmethod
    def from_env(
        cls,
        prefix: str = "MEMTOOLS_",
        *,
        environ: Mapping[str, str] | None = None,
        enabled: bool | None = None,
        meter: str | None = None,
        native: bool | None = None,
        limit: int | str | None = None,
        warning: int | str | None = None,
        critical: int | str | None = None,
        cleanup_interval: float | None = None,
        sample_every: int | None = None,
        exhausted_after: float | None = None,
        min_flow: float | None = None,
        cluster: str | None = None,
        black_box: str | None = None,
        forecast: str | None = None,
    ) -> "Config":
        """Return the settings: arguments first, then the current environment.

        A variable is the prefix and the field's name in capitals: `MEMTOOLS_SAMPLE_EVERY=10`. An empty variable counts
        as not set.

        Args:
            prefix: the prefix of the variables; no other variables may have it.
            environ: the environment, instead of `os.environ`.
            enabled: see the class.
            meter: see the class.
            native: see the class.
            limit: see the class.
            warning: see the class.
            critical: see the class.
            cleanup_interval: see the class.
            sample_every: see the class.
            exhausted_after: see the class.
            min_flow: see the class.
            cluster: see the class.
            black_box: see the class.
            forecast: see the class.

        Raises:
            ConfigError: for an invalid value, with the name of the argument or variable; and for an unknown variable
                with the prefix, with the list of known ones. The value of an unknown variable is not shown.
        """
        arguments = {
            "enabled": enabled, "meter": meter, "native": native, "limit": limit, "warning": warning,
            "critical": critical, "cleanup_interval": cleanup_interval, "sample_every": sample_every,
            "exhausted_after": exhausted_after, "min_flow": min_flow, "cluster": cluster, "black_box": black_box,
            "forecast": forecast,
        }  # fmt: skip
        given = {name: value for name, value in arguments.items() if value is not None}
        found = _from_environ(_parse_prefix(prefix), os.environ if environ is None else environ)
        _validate(found | given, lambda name: name if name in given else prefix + name.upper())
        return cls(**(found | given))  # type: ignore[arg-type]  # checked above, field by field

    def monitor(self) -> MonitorSettings:
        """Return the settings of the monitor that are set, as arguments: `MemoryMonitor(**config.monitor())`."""
        given = {name: value for name, value in as_dict(self).items() if value is not None}
        return cast("MonitorSettings", {name: given[name] for name in MonitorSettings.__annotations__ if name in given})

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold; of `cluster` no more than the scheme."""
        return as_dict(self) | {"cluster": _shown(self.cluster)}

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"


def monitor_settings(environ: Mapping[str, str] | None = None) -> MonitorSettings:
    """Return what the environment says of monitors; warn of each variable with the prefix that is none, once.

    ```python
    assert monitor_settings({"MEMTOOLS_WARNING": "60%"}) == {"warning": "60%"}
    ```

    Args:
        environ: the environment, instead of `os.environ`.

    Raises:
        ConfigError: for an invalid value, with the name of the variable.
    """
    environ = os.environ if environ is None else environ
    known = {PREFIX + field.upper(): field for field in _PARSERS}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name not in _OF_THE_BUILD:
            _warn_unknown(name, list(known))
    ours = {name: environ[name] for name, field in known.items() if field in _OF_MONITORS and name in environ}
    found = _from_environ(PREFIX, ours)
    _validate(found, lambda name: PREFIX + name.upper())
    return cast("MonitorSettings", found)


_warned: set[str] = set()


def _warn_unknown(name: str, known: list[str]) -> None:
    if name in _warned:
        return
    _warned.add(name)
    from difflib import get_close_matches  # it takes a millisecond to load

    close = get_close_matches(name, known, 1)
    meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
    warnings.warn(f"{name} is no setting of memtools and has no effect: {meant}", ConfigWarning, stacklevel=4)


def _parse_size_or_share(value: object, *, name: str) -> int:
    # Only the form is checked: the limit is not read here, so any number will do for it.
    return parse_size(value, name=name, percent_of=lambda: 10**12)


def _parse_bool(value: object, *, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(name, value, "True or False")
    return value


def _parse_meter(value: object, *, name: str) -> str:
    return parse_choice(value, METERS, name=name)


def _parse_count(value: object, *, name: str) -> int:
    return parse_count(value, name=name)


def _parse_seconds(value: object, *, name: str) -> float:
    return parse_seconds(value, name=name)


def _parse_positive_seconds(value: object, *, name: str) -> float:
    return parse_seconds(value, name=name, above_zero=True)


def _parse_rate(value: object, *, name: str) -> float:
    return parse_rate(value, name=name)


def _parse_url(value: object, *, name: str) -> str:
    # Only the form is checked: the cluster, which is above this package, knows the rest.
    if not isinstance(value, str) or "://" not in value:
        raise ConfigError(name, _shown(value), "a URL as for memtools.cluster.join(): sqlite:///PATH, or redis://…")
    return value


def _shown(url: object) -> object:
    """Return what may be shown of a URL, which may hold a password."""
    if not isinstance(url, str):
        return url
    scheme, found, _ = url.partition("://")
    return f"{scheme}://…" if found else "…"


def _parse_folder(value: object, *, name: str) -> str:
    # Whether it is there is checked by the monitor, on the machine on which it runs.
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(name, value, "the path of a folder")
    return value


def _parse_sensitivity(value: object, *, name: str) -> str:
    return parse_choice(value, SENSITIVITIES, name=name)


# The parser of each field, in the order of the record.
_PARSERS: Final[dict[str, Callable[..., object]]] = {
    "enabled": _parse_bool,
    "meter": _parse_meter,
    "native": _parse_bool,
    "limit": _parse_size_or_share,
    "warning": _parse_size_or_share,
    "critical": _parse_size_or_share,
    "cleanup_interval": _parse_seconds,
    "sample_every": _parse_count,
    "exhausted_after": _parse_positive_seconds,
    "min_flow": _parse_rate,
    "cluster": _parse_url,
    "black_box": _parse_folder,
    "forecast": _parse_sensitivity,
}


_OF_THE_BUILD: Final = ("MEMTOOLS_SANITIZE", "MEMTOOLS_WERROR")
_OF_MONITORS: Final = frozenset(MonitorSettings.__annotations__)


def _validate(values: Mapping[str, object], title: Callable[[str], str]) -> None:
    for name, value in values.items():
        if name in _PARSERS and value is not None:
            _PARSERS[name](value, name=title(name))

    warning, critical = values.get("warning"), values.get("critical")
    if warning is None or critical is None or _is_share(warning) is not _is_share(critical):
        return  # a share and a size can only be compared on the machine: the monitor does it
    if _parse_size_or_share(warning, name="warning") >= _parse_size_or_share(critical, name="critical"):
        raise ConfigError(title("warning"), warning, f"less than {title('critical')}, which is {critical!r}")


def _is_share(value: object) -> bool:
    return isinstance(value, str) and value.rstrip().endswith("%")


def _parse_prefix(prefix: object) -> str:
    if not isinstance(prefix, str) or not prefix.strip():
        raise ConfigError("prefix", prefix, "a text that is not empty, such as 'MEMTOOLS_'")
    return prefix


def _from_environ(prefix: str, environ: Mapping[str, str]) -> dict[str, object]:
    known = {prefix + field.upper(): field for field in _PARSERS}
    prefixed = {name: text for name, text in environ.items() if name.startswith(prefix)}
    for name in sorted(prefixed):
        if name not in known:
            raise ConfigError("environment", name, f"one of {', '.join(sorted(known))}")
    return {
        known[name]: _parse_value(known[name], name, text.strip()) for name, text in prefixed.items() if text.strip()
    }


def _parse_value(field: str, name: str, text: str) -> object:
    if field == "enabled":
        parse_choice(text.lower(), _ON + _OFF, name=name)
        return text.lower() in _ON
    if field == "native":
        return parse_choice(text, ("0", "1"), name=name) == "1"  # memtools itself takes only "0" for off
    if field in ("cleanup_interval", "exhausted_after"):
        return _parse_number(text, float, name, "seconds as a finite number of at least 0")
    if field == "sample_every":
        return _parse_number(text, int, name, "a whole number of at least 1")
    if field == "min_flow":
        return _parse_number(text, float, name, "a finite number of at least 0, which is how many a second")
    return text


def _parse_number(text: str, kind: type[int] | type[float], name: str, accepted: str) -> int | float:
    try:
        # float() and int() would also accept "1_000" and the digits of other scripts.
        return kind(text if text.isascii() and "_" not in text else "")
    except ValueError:
        raise ConfigError(name, text, accepted) from None
