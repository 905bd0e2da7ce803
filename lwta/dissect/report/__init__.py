"""Pages: what fired and what units mean, as something to look at."""

from lwta.dissect.report.comparison_page import ComparedImage, write_comparison_page
from lwta.dissect.report.contents import ClassPage, Exemplar, LayerPage, Site, UnitPage
from lwta.dissect.report.gallery import render_gallery
from lwta.dissect.report.page import render_explanation, render_input
from lwta.dissect.report.site import write_site

__all__ = [
    "ClassPage",
    "ComparedImage",
    "Exemplar",
    "LayerPage",
    "Site",
    "UnitPage",
    "render_explanation",
    "render_gallery",
    "render_input",
    "write_comparison_page",
    "write_site",
]
