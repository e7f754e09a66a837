"""How it is shown: who used how much, as text, JSON and HTML."""

from memtools.analysis import Leftover
from memtools.reports._growth import Growth
from memtools.reports._html import html_page
from memtools.reports._report import Report, report
from memtools.reports._rows import Row
from memtools.reports._text import can_show_blocks
from memtools.reports._usages import UsageTable
from memtools.reports._visible import visible

__all__ = ["Growth", "Leftover", "Report", "Row", "UsageTable", "can_show_blocks", "html_page", "report", "visible"]
