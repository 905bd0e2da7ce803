"""Pages: what fired and what units mean, as something to look at."""

from lwta.dissect.report.contents import ClassPage, Exemplar, LayerPage, Site, UnitPage
from lwta.dissect.report.page import render_explanation, render_input
from lwta.dissect.report.site import write_site

__all__ = [
    "ClassPage",
    "Exemplar",
    "LayerPage",
    "Site",
    "UnitPage",
    "render_explanation",
    "render_input",
    "write_site",
]
