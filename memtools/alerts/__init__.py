"""Notifications and actions when memory is short: rules, incidents, channels."""

from memtools.alerts._actions import Cleanup
from memtools.alerts._alerts import Alerts
from memtools.alerts._channels import EmailChannel, LogChannel, SlackChannel, WebhookChannel
from memtools.alerts._delivery import AlertStatistics, ChannelStatistics
from memtools.alerts._message import Alert, AlertKind
from memtools.alerts._protocol import Channel, Deadline
from memtools.alerts._rules import AlertRule
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
    "Cleanup",
    "Deadline",
    "EmailChannel",
    "LogChannel",
    "SlackChannel",
    "WebhookChannel",
]
