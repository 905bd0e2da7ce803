"""The pages of a run in a browser: the table of units, searched and sorted, without complaint."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest

from lwta.dissect.labels import COLUMNS
from lwta.dissect.report import (
    write_site,
)
from lwta.dissect.report.network_page import render_network
from lwta.dissect.report.references import References
from tests.sites import (
    MINUS,
    NAUGHTY,
    Page,
    plain,
    site,
)


def opened(page, folder, does=""):
    """What a browser makes of a page, given with what stands after #, once ``does``, a script, is done."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium at hand")
    path, _, state = str(page).partition("#")
    if does:
        html = Path(path).read_text(encoding="utf-8").replace("</body>", f"<script>{does}</script></body>")
        path = Path(path).with_name("driven.html")
        path.write_text(html, encoding="utf-8")
    quiet = ("quic", "background-networking", "component-update", "sync")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            *(f"--disable-{what}" for what in quiet), f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=20000", "--enable-logging=stderr", "--v=0", "--dump-dom",
            Path(path).resolve().as_uri() + ("#" + state if state else ""),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    return done.stdout


class Listed(HTMLParser):
    """Of the table that a browser shows: its cells, layer and unit of each row, what is said, what sorts."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.said, self.sorts, self.cells, self._in = [], "", [], [], None
        self.feed(html)
        self.rows = [(cells[0], int(cells[1])) for cells in self.cells if cells]

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag in ("td", "tr"):
            self._in = tag
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append("")
        if found.get("id") == "found":
            self._in = "found"
        if found.get("id") == "table":
            self.cells = []
        if "aria-sort" in found:
            self.sorts.append((found["data-column"], found["aria-sort"]))

    def handle_endtag(self, tag):
        if tag in ("td", "span"):
            self._in = None

    def handle_data(self, data):
        if self._in == "td":
            self.cells[-1][-1] += data
        if self._in == "found":
            self.said += data


QUERIES = ["red star", "BLOCKS.1 moon", "12", "starling 3", "a<b>", "nothing", "."]
COLUMN = {"unit": "unit", "label": "label", "runner-up": "label_2", "score": "score", "rate": "win_rate"}
ODD = ["sort=constructor", "page=-3", "page=x", "order=odd", "=", "sort=__proto__"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The network page of 250 units, and its table."""
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
    page = tmp_path_factory.mktemp("many") / "index.html"
    shown = site(explained=[], classes=[])._replace(table=table)
    page.write_text(render_network(shown, References(table, []), []), encoding="utf-8")
    return page, table


@pytest.fixture(scope="module")
def states(many, tmp_path_factory):
    """What the table shows at each of many addresses, reached one after another."""
    asked = [f"q={quote(q)}" for q in QUERIES] + ODD
    asked += ["page=99"]
    asked += [f"sort={c}&order={o}&page=3" for c in COLUMN for o in ("ascending", "descending")]
    does = """(async () => {
      const told = [];
      for (const state of STATES) {
        const turned = new Promise((resolve) => addEventListener("hashchange", resolve, { once: true }));
        location.hash = state;
        await turned;
        told.push(document.getElementById("browser").outerHTML);
      }
      const all = document.body.appendChild(document.createElement("pre"));
      all.id = "all";
      all.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(told))));
    })()""".replace("STATES", json.dumps(asked))
    html = opened(many[0], tmp_path_factory.mktemp("states"), does)
    (found,) = re.findall(r'<pre id="all">([^<]*)</pre>', html)
    return dict(zip(asked, map(Listed, json.loads(base64.b64decode(found))), strict=True))


def pairs(table):
    return list(zip(table["layer"], table["unit"], strict=True))


def test_the_first_hundred_units_are_shown_in_the_order_of_the_network(many, tmp_path):
    page, table = many
    found = Listed(opened(page, tmp_path))
    assert found.rows == pairs(table)[:100]
    assert found.said == "1 to 100 of 250 units"
    assert found.sorts == [("layer", "ascending")]
    assert found.cells[1] == ["act", "0", "star", "sky", "0.000", "0.00 %", ""]
    assert found.cells[2] == ["act", "1", "Red Star", "starling", f"{MINUS}17.667", "14.80 %", ""]
    assert found.cells[5] == ["act", "4", "no label", "", "", "59.20 %", ""]


def test_an_address_that_is_opened_holds_search_order_and_page(many, tmp_path):
    page, table = many
    text = table["label"].fillna("").str.lower() + " " + table["label_2"].fillna("")
    wanted = table[text.str.contains("star")].sort_values("score", ascending=False, kind="stable")
    assert len(wanted) > 100
    found = Listed(opened(f"{page}#q=star&sort=score&page=2", tmp_path))
    assert found.rows == pairs(wanted)[100:]
    assert found.said == f"101 to {len(wanted)} of {len(wanted)} units"
    assert found.sorts == [("score", "descending")]


@pytest.mark.parametrize("q", QUERIES)
def test_every_word_of_a_search_is_in_label_runner_up_or_layer_or_begins_the_number(many, states, q):
    def matches(row):
        text = f"{row['label'] or ''}\n{row['label_2'] or ''}\n{row['layer']}".lower()
        return all(term in text or str(row["unit"]).startswith(term) for term in q.lower().split())

    wanted = [(row["layer"], row["unit"]) for row in plain(many[1]) if matches(row)]
    found = states[f"q={quote(q)}"]
    assert found.rows == wanted[:100]
    assert found.said == (f"1 to {len(found.rows)} of {len(wanted)} units" if wanted else "none of 250 units")


@pytest.mark.parametrize("column", COLUMN)
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_each_column_sorts_both_ways_and_what_is_missing_comes_last(many, states, column, order):
    wanted = many[1].sort_values(
        COLUMN[column], ascending=order == "ascending", kind="stable", na_position="last",
        key=lambda values: values.str.lower() if values.dtype == "string" else values,
    )  # fmt: skip
    found = states[f"sort={column}&order={order}&page=3"]
    assert found.rows == pairs(wanted)[200:]
    assert found.sorts == [(column, order)]


@pytest.mark.parametrize("state", ODD)
def test_an_address_that_means_nothing_shows_the_table_all_the_same(many, states, state):
    assert states[state].rows == pairs(many[1])[:100]


_TELL = "setTimeout(() => { document.title = location.hash + ' ' + document.activeElement.id; }, 900)"


def test_typing_and_clicking_a_header_show_and_leave_the_address(many, tmp_path):
    page, table = many
    click = "document.querySelector('[data-column=rate] button').click()"
    typed = "const q = document.getElementById('query'); q.focus(); q.value = 'moon'"
    html = opened(page, tmp_path, f"{click}; {click}; {typed}; q.dispatchEvent(new Event('input')); {_TELL}")
    found = Listed(html)
    wanted = table[table["label"] == "moon"].sort_values("win_rate", kind="stable")
    assert found.rows == pairs(wanted)
    assert found.sorts == [("rate", "ascending")]
    assert "<title>#q=moon&amp;sort=rate&amp;order=ascending query</title>" in html


def test_a_page_beyond_the_last_is_the_last(many, states):
    assert states["page=99"].rows == pairs(many[1])[200:]
    assert states["page=99"].said == "201 to 250 of 250 units"


@pytest.mark.parametrize(("button", "rows", "address"), [("next", 200, "#page=3"), ("previous", 0, "")])
def test_the_first_and_last_page_end_there_and_the_button_keeps_the_focus(
    many, tmp_path, button, rows, address
):
    page, table = many
    does = f"const turn = document.getElementById('{button}'); turn.focus(); {'turn.click(); ' * 5}{_TELL}"
    html = opened(page, tmp_path, does)
    assert Listed(html).rows == pairs(table)[rows : rows + 100]
    assert re.search(f"<title>{address} ?{button}</title>", html)
    assert f'<button type="button" id="{button}" aria-disabled="true">' in html


@pytest.mark.parametrize("text", NAUGHTY)
def test_untrusted_text_stays_text(tmp_path, text):
    write_site(tmp_path / "report", site(label=text, layers=("act", text), run=text))
    html = opened(tmp_path / "report" / "index.html", tmp_path)
    found, shown = Page(html), Listed(html)
    assert shown.rows == [("act", k) for k in range(4)] + [(text, k) for k in range(3)]
    assert shown.cells[1][2:4] == [f"{text} 0.0", f"{text} second"]
    assert (found.tags.count("script"), found.tags.count("img")) == (2, 1)
    assert "onerror" not in dict(found.attributes)


@pytest.mark.parametrize(
    "name", ["units/act/0.html", "units/act/3.html", "classes/1.html", "inputs/test-12.html"]
)
def test_a_browser_opens_the_other_pages_without_complaint(tmp_path, name):
    write_site(tmp_path / "report", site())
    page = tmp_path / "report" / name
    assert Page(opened(page, tmp_path)).text == Page(page.read_text(encoding="utf-8")).text
