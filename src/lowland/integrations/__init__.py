"""Bridges to the tools that people already use; each third party sits behind one file here."""

from lowland.integrations.loggers import LogTo, line_figure

__all__ = ["LogTo", "line_figure"]
