"""Figures for those who watch from outside: one record of the process, Prometheus, OpenTelemetry.

The doors to the libraries are `memtools.exporters.prometheus` and `memtools.exporters.opentelemetry`.
"""

from memtools.exporters._metrics import Metrics, collect_metrics

__all__ = ["Metrics", "collect_metrics"]
