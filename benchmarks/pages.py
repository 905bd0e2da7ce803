"""How fast the page of a network with ten thousand units opens: python benchmarks/pages.py.

In headless Chromium, from a file; medians of five of opening (until the first row is seen), of a letter typed
into the search and of a click on a column, both until the page is laid out anew.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from playwright.sync_api import Page, sync_playwright
from wordfreq import top_n_list

from lwta.dissect.labels import COLUMNS
from lwta.dissect.report import ClassPage, LayerPage, Site
from lwta.dissect.report.network_page import render_network
from lwta.dissect.report.references import References

UNITS, CLASSES, LAYERS = 10_000, 1_000, 10
TIMED = "(make) => { const start = performance.now(); eval(make); document.body.offsetHeight; return performance.now() - start; }"  # noqa: E501


def made_up() -> Site:
    """A site whose pages of units are not there: only the network's page is opened."""
    rng, words = np.random.default_rng(0), top_n_list("en", 5000)
    names = [f"blocks.{k}.mlp.act" for k in range(LAYERS)]
    table = pd.DataFrame({column: None for column in COLUMNS}, index=range(UNITS)).assign(
        layer=np.repeat(names, UNITS // LAYERS),
        unit=np.tile(np.arange(UNITS // LAYERS), LAYERS),
        alive=True,
        wins=100,
        win_rate=rng.random(UNITS),
        negative=False,
        label=rng.choice(words, UNITS),
        label_2=rng.choice(words, UNITS),
        score=-100 * rng.random(UNITS),
        labeler="clip",
        fingerprint="",
    )
    layers = [
        LayerPage(name, UNITS // LAYERS, 24, "mean", 1 / 24, 0, UNITS // LAYERS, -50.0) for name in names
    ]
    classes = [ClassPage(k, words[k], 50, 40, []) for k in range(CLASSES)]
    return Site("made up", [], None, layers, table.astype(COLUMNS), [], classes, [], lambda index: None)


def typed(page: Page) -> float:
    """Milliseconds of a letter in the search field."""
    make = "const i = document.getElementById('query'); i.value = 's'; i.dispatchEvent(new Event('input'))"
    return page.evaluate(TIMED, make)


def sorted_by(page: Page, column: str) -> float:
    """Milliseconds of a click on the head of a column."""
    return page.evaluate(TIMED, f"document.querySelector('[data-column={column}] button').click()")


def main() -> None:
    site = made_up()
    times: dict[str, list[float]] = {"open": [], "search": [], "sort by score": [], "sort by label": []}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = Path(folder) / "index.html"
        path.write_text(render_network(site, References(site.table, site.classes), []), encoding="utf-8")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(5):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_selector("#table tbody tr", state="visible")
            times["open"].append(1000 * (time.perf_counter() - start))
            times["search"].append(typed(page))
            times["sort by score"].append(sorted_by(page, "score"))
            times["sort by label"].append(sorted_by(page, "label"))
            page.close()
        print(f"Chromium {browser.version}, {UNITS:,} units, {path.stat().st_size / 1024:.0f} KiB")
    for name, found in times.items():
        print(f"{name}: {statistics.median(found):.0f} ms (at most {max(found):.0f})")


if __name__ == "__main__":
    main()
