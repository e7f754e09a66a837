"""Reports of memory use per scope, task and function."""

from memtools.reports._report import Report, UsageTable, report
from memtools.reports._rows import Growth, Row

__all__ = ["Growth", "Report", "Row", "UsageTable", "report"]
