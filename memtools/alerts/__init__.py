"""Alerts: rules, channels and actions for when memory is short."""

from memtools.alerts._actions import Cleanup
from memtools.alerts._alerts import Alerts
from memtools.alerts._channels import EmailChannel, LogChannel, SlackChannel, WebhookChannel
from memtools.alerts._delivery import AlertStatistics, ChannelStatistics
from memtools.alerts._message import Alert, AlertKind
from memtools.alerts._protocol import Channel, Deadline, DeliveryFailed
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
    "DeliveryFailed",
    "EmailChannel",
    "LogChannel",
    "SlackChannel",
    "WebhookChannel",
]
