"""The pages of a run: one folder, opened from disk, that asks for nothing outside it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lwta.dissect.report.class_page import render_class
from lwta.dissect.report.contents import ClassPage, Exemplar, LayerPage, Site, UnitPage
from lwta.dissect.report.names import file_stem, numbered
from lwta.dissect.report.network_page import render_network
from lwta.dissect.report.page import enlarged, render_input
from lwta.dissect.report.references import References
from lwta.dissect.report.unit_page import render_unit
from lwta.dissect.store import room
from lwta.errors import InputError

__all__ = ["ClassPage", "Exemplar", "LayerPage", "Site", "UnitPage", "check_folder", "write_site"]

#: What lies in the folder of a report; the last is written beside the pages by who judges the network.
_OWN = {"index.html", "units", "classes", "inputs", "images", "summary.csv"}


def write_site(folder: Path, site: Site) -> Path:
    """Write the pages of a run, in place of those that the folder held.

    The network's page ``index.html``, ``units/LAYER/UNIT.html``, ``classes/K.html``, ``inputs/*.html``, and
    ``images/N.jpg``, the probe images shown, each once. All is written into a folder beside and takes the
    place of the old one at the end, so that a report that is killed leaves the old one whole.

    Args:
        folder: of the pages; the folder above it exists.
        site: what they show.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: where the folder holds anything else than a report, or the disk is full.
        ValueError: where the pages of units are not those of the label table.
    """
    check_folder(folder)
    fresh = folder.with_name(f"{folder.name}.new")
    with room(folder):
        try:
            _remove(fresh)
            fresh.mkdir()
            _write_pages(fresh, site)
            _replace(folder, fresh)
        finally:
            _remove(fresh)
    return folder / "index.html"


def check_folder(folder: Path) -> None:
    """Refuse to replace what is no report, or holds something besides one."""
    if not folder.exists():
        return
    if not (folder / "index.html").is_file():
        raise InputError(f"{folder} is there and holds no report; move it away")
    if others := sorted({path.name for path in folder.iterdir()} - _OWN):
        raise InputError(f"{folder / others[0]} is no part of a report, which would replace it; move it away")


def _write_pages(folder: Path, site: Site) -> None:
    references = References(site.table, site.classes)
    inputs = [f"inputs/{name}.html" for name in numbered(file_stem(e.image) for e in site.explained)]
    for name, explained in zip(inputs, site.explained, strict=True):
        home = (site.run, "../index.html")
        _write(
            folder / name, render_input(explained, lambda *unit: _beside(references.unit(*unit).page), home)
        )
    around = [None, *site.classes, None]
    for place, page in enumerate(site.classes):
        text = render_class(page, site.run, references, [around[place], around[place + 2]])
        _write(folder / "classes" / f"{page.index}.html", text)
    _write_units(folder, site, references)
    _write(folder / "index.html", render_network(site, references, inputs))


def _beside(page: str | None) -> str | None:
    """A page as one in a folder of the site names it."""
    return None if page is None else f"../{page}"


def _write_units(folder: Path, site: Site, references: References) -> None:
    layers = {layer.layer: layer for layer in site.layers}
    show = _pictures(folder, site.picture)
    written = set()
    for page in site.units:
        layer, unit = page.row["layer"], page.row["unit"]
        name = references.unit(layer, unit).page
        if name is None:
            raise ValueError(f"unit {unit} of {layer} is not in the label table")
        _write(folder / name, render_unit(page, site.run, layers[layer], references, show))
        written.add((layer, unit))
    if missing := references.units.keys() - written:
        raise ValueError(f"{len(missing)} units of the label table have no page, such as {min(missing)}")


def _pictures(folder: Path, picture: Callable[[int], Image.Image]) -> Callable[[int], str]:
    """Probe index -> file of that image, written when first asked for; all units share it."""
    written: set[int] = set()
    (folder / "images").mkdir()

    def show(index: int) -> str:
        name = f"images/{index}.jpg"
        if index not in written:
            enlarged(picture(index)).convert("RGB").save(folder / name, quality=88)
            written.add(index)
        return name

    return show


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _replace(folder: Path, fresh: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    if not folder.exists():
        fresh.replace(folder)
        _remove(old)
        return
    _remove(old)
    folder.replace(old)
    try:
        fresh.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
