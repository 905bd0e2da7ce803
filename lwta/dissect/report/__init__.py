"""Pages: what fired and what units mean, as something to look at."""

from lwta.dissect.report.index import ExplainedImage, LayerUnits, render_report, strip
from lwta.dissect.report.page import render_input

__all__ = ["ExplainedImage", "LayerUnits", "render_input", "render_report", "strip"]
