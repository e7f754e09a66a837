"""Print which clients are loaded before and after the start of alerts, and what a delivery loads."""

import sys

from memtools.alerts import AlertRule, Alerts, EmailChannel, WebhookChannel
from memtools.events import TaskAbandoned, emit

CLIENTS = ("smtplib", "urllib.request", "apprise")
channels = {
    "hook": WebhookChannel("http://127.0.0.1:1/"),
    "mail": EmailChannel("127.0.0.1", 1, sender="a@b.c", recipients="a@b.c", security="none"),
}
alerts = Alerts([AlertRule("warning", notify=("hook", "mail"))], channels=channels, drain=0.2)
print([name for name in CLIENTS if name in sys.modules])
with alerts:
    print([name for name in CLIENTS if name in sys.modules])
    loaded = set(sys.modules)
    emit(TaskAbandoned("scope", "task", 1.0))
channels = alerts.statistics().channels
print([channel.failures > 0 for channel in channels], sorted(set(sys.modules) - loaded))
