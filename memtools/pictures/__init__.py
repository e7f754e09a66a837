"""Pictures without a library: charts as SVG, pages around them, sparklines for a terminal. Nothing about memory."""

from memtools.pictures._chart import Chart, Line, Panel, Tone
from memtools.pictures._page import html_page
from memtools.pictures._scale import BYTES, SECONDS
from memtools.pictures._sparkline import sparkline
from memtools.pictures._svg import chart_svg
from memtools.pictures._words import escaped

__all__ = ["BYTES", "SECONDS", "Chart", "Line", "Panel", "Tone", "chart_svg", "escaped", "html_page", "sparkline"]
