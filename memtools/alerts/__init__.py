"""Tell people, and act, when memory is short: rules, the life of an alert, channels."""

from memtools.alerts._alert import Alert, AlertKind
from memtools.alerts._alerts import Alerts
from memtools.alerts._channel import Channel
from memtools.alerts._cleaning import Cleaner
from memtools.alerts._deadline import Deadline
from memtools.alerts._failure import DeliveryFailed
from memtools.alerts._log_channel import LogChannel
from memtools.alerts._mail import EmailChannel
from memtools.alerts._rules import AlertRule
from memtools.alerts._slack import SlackChannel
from memtools.alerts._statistics import AlertStatistics, ChannelStatistics
from memtools.alerts._webhook import WebhookChannel
from memtools.alerts.apprise import AppriseChannel

__all__ = [
    "Alert",
    "AlertKind",
    "AlertRule",
    "AlertStatistics",
    "Alerts",
    "AppriseChannel",
    "Channel",
    "ChannelStatistics",
    "Cleaner",
    "Deadline",
    "DeliveryFailed",
    "EmailChannel",
    "LogChannel",
    "SlackChannel",
    "WebhookChannel",
]
