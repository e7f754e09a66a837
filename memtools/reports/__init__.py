"""Reports of memory use per scope, task and function."""

from memtools.reports._diff import OwnerChange, ReportDiff, diff_reports
from memtools.reports._page_contents import html_page
from memtools.reports._report import Report, UsageTable, report
from memtools.reports._rows import Growth, Row
from memtools.reports._timeline_chart import timeline_svg

__all__ = [
    "Growth",
    "OwnerChange",
    "Report",
    "ReportDiff",
    "Row",
    "UsageTable",
    "diff_reports",
    "html_page",
    "report",
    "timeline_svg",
]
