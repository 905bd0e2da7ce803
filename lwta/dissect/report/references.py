"""What pages call each other's units and classes, and where those pages lie."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from lwta.dissect.report.contents import ClassPage
from lwta.dissect.report.names import file_stem, numbered


class Reference(NamedTuple):
    """A unit as other pages name it.

    Attributes:
        label: None where it has none; ``reason`` then says why.
        page: relative to the site's folder, None where it has none.
    """

    layer: str
    unit: int
    label: str | None
    reason: str | None
    page: str | None


class References:
    """Names and pages of units and classes.

    Args:
        table: the label table; each row has a page.
        classes: those that have a page.
    """

    def __init__(self, table: pd.DataFrame, classes: Sequence[ClassPage]) -> None:
        layers = table["layer"].drop_duplicates().tolist()
        self.folders: dict[str, str] = dict(zip(layers, numbered(map(file_stem, layers)), strict=True))
        self.units: dict[tuple[str, int], Reference] = {
            (layer, unit): Reference(layer, unit, label, reason, f"units/{self.folders[layer]}/{unit}.html")
            for layer, unit, label, reason in rows(table, ["layer", "unit", "label", "reason"])
        }
        names = Counter(page.name for page in classes)
        self._class_names = {page.index: page.name for page in classes}
        # Some data sets have two classes of one name; of such a name no page can be meant.
        self._class_pages = {
            page.name: f"classes/{page.index}.html" for page in classes if names[page.name] == 1
        }

    def unit(self, layer: str, unit: int) -> Reference:
        """A unit; without a page where the table has no such unit."""
        return self.units.get((layer, unit), Reference(layer, unit, None, None, None))

    def class_page(self, name: str) -> str | None:
        """The page of the class of that name, None where there is none or more than one."""
        return self._class_pages.get(name)

    def class_name(self, index: int) -> tuple[str, str | None]:
        """Name and page of a class, its number where it has no page."""
        known = index in self._class_names
        return (self._class_names[index], f"classes/{index}.html") if known else (str(index), None)

    def around(self, layer: str, unit: int) -> tuple[Reference | None, Reference | None]:
        """The units before and after it in its layer, None where there is none."""
        return self.units.get((layer, unit - 1)), self.units.get((layer, unit + 1))


def rows(table: pd.DataFrame, columns: list[str]) -> Iterable[tuple[Any, ...]]:
    """Rows of a table as plain values, None where one is missing."""
    plain = table[columns].astype(object)
    return plain.where(plain.notna(), None).itertuples(index=False, name=None)
