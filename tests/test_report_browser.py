"""The report of a run in a real browser: searched, sorted, followed, by keyboard alone, at any width.

``LWTA_RUN`` names a run with a report to look at; a small one is made where it is not set.
"""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

import dissect
from lwta.dissect.labels import read_labels
from tests.browser import keep_screenshot, opened, overflow


@pytest.fixture(scope="module")
def run(shapes_run, tmp_path_factory) -> Path:
    if named := os.environ.get("LWTA_RUN"):
        return Path(named)
    folder = Path(shutil.copytree(shapes_run, tmp_path_factory.mktemp("runs") / "reported"))
    dissect.main(["label", f"--run={folder}", "--probe=train"])
    dissect.main(["report", f"--run={folder}", "test:0", "test:1"])
    return folder


@pytest.fixture(scope="module")
def table(run) -> pd.DataFrame:
    known = read_labels(run)
    assert known is not None
    return known.table


def address(run, page="index.html"):
    return (run / "report" / page).resolve().as_uri()


def cells(page, column):
    """Texts of a column of the rows shown."""
    return page.locator(f"#table tbody tr td:nth-child({column})").all_inner_texts()


def test_search_finds_units_by_label_sorting_works_and_a_link_leads_to_the_unit(browser, run, table):
    label = table["label"].value_counts().index[-1]  # the rarest
    wanted = table[(table["label"] == label) | (table["label_2"] == label)]
    with opened(browser, address(run)) as page:
        assert len(cells(page, 1)) == min(100, len(table))
        page.get_by_label("Search").fill(label)
        found = list(zip(cells(page, 1), map(int, cells(page, 2)), strict=True))
        assert set(wanted[["layer", "unit"]].itertuples(index=False, name=None)) <= set(found)
        assert all(label in f"{a} {b}" for a, b in zip(cells(page, 3), cells(page, 4), strict=True))
        for direction in ("descending", "ascending"):
            page.get_by_role("button", name="score").click()
            header = page.locator("th[data-column=score]")
            if header.get_attribute("aria-sort") != direction:
                page.get_by_role("button", name="score").click()
            scores = [float(text.replace("\N{MINUS SIGN}", "-")) for text in cells(page, 5) if text]
            assert len(scores) >= 1
            assert scores == sorted(scores, reverse=direction == "descending")
        layer, unit = cells(page, 1)[0], int(cells(page, 2)[0])
        page.locator("#table tbody tr td a").first.click()
        page.wait_for_url("**/units/**")
        (own,) = table[(table["layer"] == layer) & (table["unit"] == unit)].to_dict("records")
        assert page.locator("h1").inner_text().startswith(str(own["label"]))
        assert f"{unit} of {layer}" in page.inner_text("main")


def test_the_keyboard_alone_searches_opens_a_unit_and_comes_back(browser, run, table):
    label = str(table["label"].dropna().iloc[0])
    with opened(browser, address(run)) as page:
        while page.evaluate("document.activeElement.id") != "query":
            page.keyboard.press("Tab")
        page.keyboard.type(label)
        shown = cells(page, 2)
        while not page.evaluate("document.activeElement.closest('tbody') !== null"):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/units/**")
        page.go_back()
        assert page.get_by_label("Search").input_value() == label
        assert cells(page, 2) == shown


def test_without_scripts_the_other_pages_read_the_same(browser, run):
    with opened(browser, address(run), java_script_enabled=False) as page:
        page.get_by_role("link", name="test:0").first.click()
        page.wait_for_url("**/inputs/**")
        assert "units fired" in page.inner_text("article")
        page.get_by_role("link").first.click()
        page.wait_for_url("**/index.html")


def test_a_fired_unit_of_an_input_leads_to_its_page_and_layers_unfold_by_keyboard(browser, run):
    with opened(browser, address(run, "inputs/test-0.html")) as page:
        closed = page.locator("details.layer:not([open]) > summary")
        if closed.count():
            before = closed.count()
            closed.first.focus()
            page.keyboard.press("Enter")
            assert closed.count() == before - 1
        card = page.locator("li.unit").first
        unit = card.locator("dd a").first.inner_text()
        card.locator("dd a").first.click()
        page.wait_for_url(f"**/{unit}.html")
        assert f"{unit} of " in page.inner_text("main")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_every_kind_of_page_fits_the_window(browser, run, table, width, scheme):
    alive = table[table["alive"]].iloc[-1]
    unit = next((run / "report" / "units").glob(f"*/{alive['unit']}.html"))
    pages = {
        "network": "index.html",
        "unit": unit.relative_to(run / "report"),
        "class": "classes/0.html",
        "input": "inputs/test-0.html",
    }
    for name, place in pages.items():
        with opened(browser, address(run, place), width=width, scheme=scheme) as page:
            assert overflow(page) == 0, name
            dark = page.evaluate("getComputedStyle(document.querySelector('.lwta')).backgroundColor")
            assert (sum(map(int, dark[4:-1].split(", "))) < 150) == (scheme == "dark")
            keep_screenshot(page, f"report-{name}-{width}-{scheme}")
