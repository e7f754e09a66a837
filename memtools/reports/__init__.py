"""Reports of memory use per scope, task and function."""

from memtools.analysis import Leftover
from memtools.reports._html import html_page
from memtools.reports._report import Report, UsageTable, report
from memtools.reports._rows import Growth, Row

__all__ = ["Growth", "Leftover", "Report", "Row", "UsageTable", "html_page", "report"]
