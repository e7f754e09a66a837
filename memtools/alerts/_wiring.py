"""Find what stands behind the names that rules use.

Leaves to others: the channels themselves.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from memtools.alerts._channel import Channel
from memtools.alerts._log_channel import LogChannel
from memtools.alerts._rules import AlertRule
from memtools.alerts._targets import LOG, Target, parse_name
from memtools.alerts.apprise import AppriseChannel
from memtools.errors import ConfigError


@runtime_checkable
class Cleaner(Protocol):
    """Something that gives memory back when asked: a `MemoryMonitor`, or your own."""

    def clean_up(self) -> Any:  # Any: what it returns is not looked at, unless it can be awaited
        """Give memory back now."""
        ...


CleanUp: TypeAlias = Callable[[], Any]


def channels_for(rules: Iterable[AlertRule], given: Mapping[str, Channel]) -> dict[Target, Channel]:
    """Return the channel of each target that the rules tell.

    Raises:
        ConfigError: for a name without a channel, and a channel that is none.
    """
    known: dict[Target, Channel] = {LOG: LogChannel()}
    for name, channel in given.items():
        if not all(callable(getattr(channel, method, None)) for method in ("open", "send", "close")):
            raise ConfigError("channels", type(channel), "channels, which have the methods open, send and close")
        known[parse_name(name, name="channels")] = channel

    found: dict[Target, Channel] = {}
    for target in (target for rule in rules for target in rule.tells):
        if target.url is not None and target not in found:
            found[target] = AppriseChannel(target.url.reveal())
        elif target.url is None:
            found[target] = _known(target, known)
    return found


def parse_cleaner(value: object, rules: Iterable[AlertRule]) -> CleanUp | None:
    """Return what `immediate_cleanup` calls; None where no rule asks for it.

    Raises:
        ConfigError: where a rule asks for it and there is nothing to call.
    """
    clean_up = getattr(value, "clean_up", None)
    if callable(clean_up):
        return clean_up  # type: ignore[no-any-return]  # what it returns is looked at when it has been called
    if callable(value):
        return value
    if value is not None or any(rule.action == "immediate_cleanup" for rule in rules):
        accepted = "a MemoryMonitor, or a callable that gives memory back: a rule has the action 'immediate_cleanup'"
        raise ConfigError("monitor", value, accepted)
    return None


def _known(target: Target, known: Mapping[Target, Channel]) -> Channel:
    if target not in known:
        names = ", ".join(repr(other.name) for other in known)
        raise ConfigError("notify", target.name, f"one of the channels that there are: {names}")
    return known[target]
