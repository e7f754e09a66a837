"""Find what stands behind the names that rules use.

Leaves to others: the channels themselves.
"""

from collections.abc import Iterable, Mapping

from memtools.alerts._channel import Channel
from memtools.alerts._log_channel import LogChannel
from memtools.alerts._rules import AlertRule
from memtools.alerts._targets import LOG, Target, parse_name
from memtools.alerts.apprise import AppriseChannel
from memtools.errors import ConfigError


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


def _known(target: Target, known: Mapping[Target, Channel]) -> Channel:
    if target not in known:
        names = ", ".join(repr(other.name) for other in known)
        raise ConfigError("notify", target.name, f"one of the channels that there are: {names}")
    return known[target]
