"""A ledger without accounts, a registry with a collector, and scripted monitors."""

from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from memtools.exporters import _aggregates
from memtools.exporters.prometheus import MemtoolsCollector
from memtools.ledger import forget_accounts
from memtools.monitor import AdmissionStatistics, CollectorPauses, MonitorStatistics
from memtools.readings import Headroom, Level, Limit, LimitSource

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


@pytest.fixture(autouse=True)
def fresh_accounts() -> Iterator[None]:
    """Start and end without accounts."""
    forget_accounts()
    yield
    forget_accounts()


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """A registry with a collector in it."""
    registry = CollectorRegistry()
    with MemtoolsCollector(registry):
        yield registry


@pytest.fixture
def scrape(registry: CollectorRegistry) -> Callable[[], Samples]:
    """Return the values of a scrape by sample name and sorted labels."""

    def scrape_now() -> Samples:
        found: Samples = {}
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    return scrape_now


class ScriptedMonitor:
    """A monitor with given statistics."""

    def __init__(self, statistics: MonitorStatistics) -> None:
        self._statistics = statistics
        self.level = statistics.level

    def statistics(self) -> MonitorStatistics:
        return self._statistics


@pytest.fixture
def monitored(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that monitors are started, by name and level."""

    def start(**levels: Level) -> None:
        made = tuple(ScriptedMonitor(_statistics(name, level)) for name, level in levels.items())
        monkeypatch.setattr(_aggregates, "monitors", lambda: made)

    return start


def _statistics(name: str, level: Level) -> MonitorStatistics:
    fields = dict.fromkeys(MonitorStatistics.__match_args__, 0) | {
        "name": name,
        "level": level,
        "limit": Limit(1000, LimitSource.USER),
        "headroom": Headroom(300, LimitSource.USER, (), None),
        "level_changes": {Level.WARNING: 3},
        "cleanups": 2,
        "freed_bytes": 4096,
        "admissions": AdmissionStatistics(9, 4, 2, 1, 0),
        "pauses": CollectorPauses(7, 0.5, 0.25),
    }
    return MonitorStatistics(**fields)
