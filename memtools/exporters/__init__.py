"""Metrics of the process, for a record, Prometheus and OpenTelemetry.

The adapters of the libraries are `memtools.exporters.prometheus` and `memtools.exporters.opentelemetry`.
"""

from memtools.exporters._metrics import Metrics, collect_metrics

__all__ = ["Metrics", "collect_metrics"]
