"""How it is shown: who used how much, as text, JSON and HTML."""

from memtools.analysis import Leftover
from memtools.reports._html import html_page
from memtools.reports._report import Report, UsageTable, report
from memtools.reports._rows import Growth, Row
from memtools.reports._text import can_show_blocks

__all__ = ["Growth", "Leftover", "Report", "Row", "UsageTable", "can_show_blocks", "html_page", "report"]
