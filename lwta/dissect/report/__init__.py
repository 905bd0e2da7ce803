"""Pages: what fired, as something to look at."""

from lwta.dissect.report.page import render_input

__all__ = ["render_input"]
