"""The report: one HTML file about any number of runs, that opens offline.

``write(build(lowland.open("runs")), "report.html")`` is the whole of ``lowland report``.
"""

from __future__ import annotations

from lowland.report.build import build
from lowland.report.html import render, write
from lowland.report.sections import Box, Details, Figure, Gallery, Listing, Paragraph, Report, Section, Table
from lowland.report.site import write_site
from lowland.report.statistics import show, show_interval, t_interval

__all__ = ["Box", "Details", "Figure", "Gallery", "Listing", "Paragraph", "Report", "Section", "Table"]
__all__ += ["build", "render", "show", "show_interval", "t_interval", "write", "write_site"]
