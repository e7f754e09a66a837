"""How alerts fared, in numbers.

Leaves to others: counting (`_outbox`, `_actions`, `_alerts`).
"""

from memtools.records import record


@record
class ChannelStatistics:
    """How one channel fared.

    Attributes:
        name: its name; of an apprise URL the scheme.
        waiting: messages in its queue.
        delivered: messages that the other side took.
        failures: attempts that failed.
        dropped: messages that were pushed out of the full queue.
        expired: messages that were given up, as they could not be delivered for too long.
        refused: messages that the other side will never take.
        left: messages that were still there when delivery ended.
    """

    name: str
    waiting: int
    delivered: int
    failures: int
    dropped: int
    expired: int
    refused: int
    left: int

    @property
    def lost(self) -> int:
        """Messages that were not delivered and never will be."""
        return self.dropped + self.expired + self.refused + self.left


@record
class AlertStatistics:
    """How alerts fared since the start.

    Attributes:
        open_incidents: what is the matter now.
        heard: facts that were looked at.
        told: messages that were handed to a channel, with those that wait.
        actions_run: actions that ended well.
        actions_failed: actions that raised or took too long.
        actions_skipped: actions that were not run: the same one was still at it, or had failed too often.
        channels: how each channel fared.
    """

    open_incidents: int
    heard: int
    told: int
    actions_run: int
    actions_failed: int
    actions_skipped: int
    channels: tuple[ChannelStatistics, ...]
