"""Pages: what fired and what units mean, as something to look at."""

from lwta.dissect.report.comparison_page import ComparedImage, write_comparison_page
from lwta.dissect.report.gallery import render_gallery
from lwta.dissect.report.index import ExplainedImage, LayerUnits, render_report, strip
from lwta.dissect.report.page import render_input

__all__ = [
    "ComparedImage",
    "ExplainedImage",
    "LayerUnits",
    "render_gallery",
    "render_input",
    "render_report",
    "strip",
    "write_comparison_page",
]
