"""The pages of a run: one folder, opened from disk, that asks for nothing outside it."""

from lwta.dissect.report.contents import ClassPage, Exemplar, LayerPage, Site, UnitPage

__all__ = ["ClassPage", "Exemplar", "LayerPage", "Site", "UnitPage"]
