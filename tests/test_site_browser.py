"""The table of units in a browser: all that its search, its columns, its pages and its address do."""

from typing import NamedTuple
from urllib.parse import quote

import pandas as pd
import pytest

from lwta.dissect.labels import COLUMNS
from lwta.dissect.report import write_site
from lwta.dissect.report.network_page import render_network
from lwta.dissect.report.references import References
from tests.browser import opened
from tests.pages import MINUS, NAUGHTY, Page
from tests.sites import plain, site

QUERIES = ["red star", "BLOCKS.1 moon", "12", "starling 3", "a<b>", "nothing", "."]
COLUMN = {"unit": "unit", "label": "label", "runner-up": "label_2", "score": "score", "rate": "win_rate"}
ODD = ["sort=constructor", "page=-3", "page=x", "order=odd", "=", "sort=__proto__"]

_READ = """() => [
  [...document.querySelectorAll("#table tbody tr")].map((tr) => [...tr.cells].map((td) => td.textContent)),
  document.getElementById("found").textContent,
  [...document.querySelectorAll("[aria-sort]")].map((th) => [th.dataset.column, th.ariaSort]),
]"""
_GO = """(state) => new Promise((resolve) => {
  addEventListener("hashchange", resolve, { once: true });
  location.hash = state;
})"""


class Listed(NamedTuple):
    """What the table shows: cells of each row, what is said above, (column, direction) of the order."""

    cells: list[list[str]]
    said: str
    sorts: list[list[str]]

    @property
    def units(self):
        return [(cells[0], int(cells[1])) for cells in self.cells]


def listed(page):
    return Listed(*page.evaluate(_READ))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Address of the network page of 250 units, and its table."""
    count = 250
    words = ["star", "Red Star", "moon", "a<b>&c", None]
    named = [words[k % 5] for k in range(count)]
    table = pd.DataFrame(
        {
            "layer": ["act" if k < 150 else "blocks.1" for k in range(count)],
            "unit": [k % 150 for k in range(count)], "alive": True, "wins": 1, "negative": False,
            "win_rate": [(k * 37 % count) / count for k in range(count)], "label": named,
            "score": [None if named[k] is None else -(k * 53 % count) / 3 for k in range(count)],
            "label_2": [None if named[k] is None else ["sky", "starling"][k % 2] for k in range(count)],
        },
        columns=list(COLUMNS),
    ).astype(COLUMNS)  # fmt: skip
    path = tmp_path_factory.mktemp("many") / "index.html"
    shown = site(explained=[], classes=[])._replace(table=table)
    path.write_text(render_network(shown, References(table, []), []), encoding="utf-8")
    return path.as_uri(), table


@pytest.fixture(scope="module")
def states(browser, many):
    """What the table shows at each of many addresses, reached one after another."""
    asked = [f"q={quote(q)}" for q in QUERIES] + ODD + ["page=99"]
    asked += [f"sort={c}&order={o}&page=3" for c in COLUMN for o in ("ascending", "descending")]
    found = {}
    with opened(browser, many[0]) as page:
        for state in asked:
            page.evaluate(_GO, state)
            found[state] = listed(page)
    return found


def pairs(table):
    return list(zip(table["layer"], table["unit"], strict=True))


def test_the_first_hundred_units_are_shown_in_the_order_of_the_network(browser, many):
    url, table = many
    with opened(browser, url) as page:
        found = listed(page)
    assert found.units == pairs(table)[:100]
    assert found.said == "1 to 100 of 250 units"
    assert found.sorts == [["layer", "ascending"]]
    assert found.cells[0] == ["act", "0", "star", "sky", "0.000", "", "0.00 %", ""]
    assert found.cells[1] == ["act", "1", "Red Star", "starling", f"{MINUS}17.667", "", "14.80 %", ""]
    assert found.cells[4] == ["act", "4", "no label", "", "", "", "59.20 %", ""]


def test_an_address_that_is_opened_holds_search_order_and_page(browser, many):
    url, table = many
    text = table["label"].fillna("").str.lower() + " " + table["label_2"].fillna("")
    wanted = table[text.str.contains("star")].sort_values("score", ascending=False, kind="stable")
    assert len(wanted) > 100
    with opened(browser, f"{url}#q=star&sort=score&page=2") as page:
        found = listed(page)
    assert found.units == pairs(wanted)[100:]
    assert found.said == f"101 to {len(wanted)} of {len(wanted)} units"
    assert found.sorts == [["score", "descending"]]


@pytest.mark.parametrize("q", QUERIES)
def test_every_word_of_a_search_is_in_label_runner_up_or_layer_or_begins_the_number(many, states, q):
    def matches(row):
        text = f"{row['label'] or ''}\n{row['label_2'] or ''}\n{row['layer']}".lower()
        return all(term in text or str(row["unit"]).startswith(term) for term in q.lower().split())

    wanted = [(row["layer"], row["unit"]) for row in plain(many[1]) if matches(row)]
    found = states[f"q={quote(q)}"]
    assert found.units == wanted[:100]
    assert found.said == (
        f"1 to {len(wanted[:100])} of {len(wanted)} units" if wanted else "none of 250 units"
    )


@pytest.mark.parametrize("column", COLUMN)
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_each_column_sorts_both_ways_and_what_is_missing_comes_last(many, states, column, order):
    wanted = many[1].sort_values(
        COLUMN[column], ascending=order == "ascending", kind="stable", na_position="last",
        key=lambda values: values.str.lower() if values.dtype == "string" else values,
    )  # fmt: skip
    found = states[f"sort={column}&order={order}&page=3"]
    assert found.units == pairs(wanted)[200:]
    assert found.sorts == [[column, order]]


@pytest.mark.parametrize("state", ODD)
def test_an_address_that_means_nothing_shows_the_table_all_the_same(many, states, state):
    assert states[state].units == pairs(many[1])[:100]


def test_a_page_beyond_the_last_is_the_last(many, states):
    assert states["page=99"].units == pairs(many[1])[200:]
    assert states["page=99"].said == "201 to 250 of 250 units"


def test_typing_and_clicking_a_header_show_and_leave_the_address(browser, many):
    url, table = many
    with opened(browser, url) as page:
        for _ in range(2):
            page.get_by_role("button", name="fired on").click()
        page.get_by_label("Search").press_sequentially("moon")
        page.wait_for_function("location.hash === '#q=moon&sort=rate&order=ascending'")
        found = listed(page)
        assert page.evaluate("document.activeElement.id") == "query"
    assert found.units == pairs(table[table["label"] == "moon"].sort_values("win_rate", kind="stable"))
    assert found.sorts == [["rate", "ascending"]]


@pytest.mark.parametrize(
    ("button", "before", "address", "first"), [("next", "", "#page=3", 200), ("previous", "#page=3", "", 0)]
)
def test_the_first_and_last_page_end_there_and_the_button_keeps_the_focus(
    browser, many, button, before, address, first
):
    url, table = many
    with opened(browser, url + before) as page:
        page.locator(f"#{button}").focus()
        for _ in range(5):
            page.keyboard.press("Enter")
        page.wait_for_function("address => location.hash === address", arg=address)
        assert listed(page).units == pairs(table)[first : first + 100]
        assert page.evaluate("document.activeElement.id") == button
        assert page.locator(f"#{button}").get_attribute("aria-disabled") == "true"


@pytest.mark.parametrize("text", NAUGHTY)
def test_untrusted_text_stays_text(browser, tmp_path, text):
    index = write_site(tmp_path / "report", site(label=text, layers=("act", text), run=text))
    with opened(browser, index.as_uri()) as page:
        shown, found = listed(page), Page(page.content())
    assert shown.units == [("act", k) for k in range(4)] + [(text, k) for k in range(3)]
    assert shown.cells[0][2:4] == [f"{text} 0.0", f"{text} second"]
    assert (found.tags.count("script"), found.tags.count("img")) == (2, 1)
    assert not [name for _, own in found.elements for name in own if name.startswith("on")]
