"""The folder of a run's pages: whole, linked, escaped, and replaced all at once."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lwta.dissect.report import write_site
from lwta.dissect.report.names import file_stem, numbered
from lwta.errors import InputError
from tests.pages import ASKING, NAUGHTY, dangling, read_page
from tests.sites import (
    exemplar,
    plain,
    probe_image,
    rows,
    site,
    unit_page,
    written,
)
from tests.test_page import explanation, unit

# --- the folder ----------------------------------------------------------------------------------


def test_every_unit_class_and_input_has_its_page_and_every_image_shown_its_file(tmp_path):
    index = write_site(tmp_path / "report", site())
    assert index == tmp_path / "report" / "index.html"
    found = {path.relative_to(index.parent).as_posix() for path in index.parent.rglob("*") if path.is_file()}
    assert found == {
        "index.html", "inputs/test-12.html", *(f"classes/{k}.html" for k in range(3)),
        *(f"units/act/{k}.html" for k in range(4)), *(f"units/conv.0/{k}.html" for k in range(3)),
        "images/5.jpg", "images/6.jpg",
    }  # fmt: skip


@pytest.mark.parametrize("layers", [("act", "conv.0"), ("..", "a/b c#d%"), ("Act", "act"), ("é", "?")])
def test_every_link_of_every_page_leads_to_a_file_in_the_folder(tmp_path, layers):
    nearest = [(layers[1], 2, 0.5), (layers[0], 3, 0.25), ("elsewhere", 0, 0.1)]
    first = {"nearest": nearest, "pushes": [("cat", 1.0), ("bird", 0.5)], "rivals": [(1, 0.5)]}
    found = written(tmp_path / "report", layers=layers, first=first, explained=[explanation(unit())] * 2)
    assert len(found) == 1 + 7 + 3 + 2
    assert list(dangling(tmp_path / "report")) == []
    assert sum(len(page.addresses) for page in found.values()) > 80


def test_the_pages_ask_nothing_of_any_server_and_only_the_network_page_runs_a_script(tmp_path):
    found = written(tmp_path / "report")
    for name, page in found.items():
        html = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|@import|<base|//cdn", html)
        assert not ASKING & set(page.tags)
        assert page.tags.count("script") == (2 if name == "index.html" else 0)
        assert not [name for _, own in page.shape for name in own if name.startswith("on")]


def test_an_image_is_asked_for_and_written_once_for_all_units(tmp_path):
    asked = []

    def counted(index):
        asked.append(index)
        return probe_image(index)

    write_site(tmp_path / "report", site(picture=counted))
    assert Counter(asked) == {5: 1, 6: 1}
    for index in asked:
        shown = np.asarray(Image.open(tmp_path / "report" / "images" / f"{index}.jpg")).astype(int)
        assert np.abs(shown - (10 * index, 100, 200)).max() <= 3


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_that_fails_leaves_the_old_one_whole_and_nothing_beside(tmp_path):
    folder = tmp_path / "report"
    write_site(folder, site())
    before = contents(folder)

    def broken(index):
        raise InputError("the image is gone")

    with pytest.raises(InputError, match="gone"):
        write_site(folder, site(picture=broken, run="new"))
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_report_that_cannot_take_the_place_of_the_old_one_gives_it_back(tmp_path, monkeypatch):
    folder, replace = tmp_path / "report", Path.replace
    write_site(folder, site())
    before = contents(folder)

    def refuse(path, target):
        if path.name == "report.new":
            raise PermissionError("held open")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError, match="held open"):
        write_site(folder, site(run="new"))
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_new_report_takes_the_place_of_the_old_one_and_of_what_a_killed_one_left(tmp_path):
    folder = tmp_path / "report"
    write_site(folder, site())
    (folder / "units" / "act" / "99.html").write_text("stale")
    for left in ("report.new", "report.old"):
        (tmp_path / left / "units").mkdir(parents=True)
    write_site(folder, site(run="new"))
    assert "new" in read_page(folder / "index.html").text
    assert not (folder / "units" / "act" / "99.html").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "labels.csv").write_text("precious")
    with pytest.raises(InputError, match="holds no report; move it away"):
        write_site(tmp_path / "run", site())
    assert (tmp_path / "run" / "labels.csv").read_text() == "precious"


def test_pages_of_other_units_than_the_table_has_are_an_error(tmp_path):
    table = rows(("act", "conv.0"))
    pages = [unit_page(row) for row in plain(table)]
    with pytest.raises(
        ValueError, match=re.escape("1 units of the label table have no page, such as ('conv.0', 2)")
    ):
        write_site(tmp_path / "report", site(units=pages[:-1]))
    with pytest.raises(ValueError, match="unit 2 of conv.0 is not in the label table"):
        write_site(tmp_path / "report", site(units=pages, table=table[:-1]))


@given(st.lists(st.text(max_size=120)))
def test_file_names_are_safe_and_no_two_are_alike_on_any_file_system(texts):
    names = numbered(map(file_stem, texts))
    assert len({name.lower() for name in names}) == len(texts)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name)


def test_a_plain_name_is_kept():
    for name in ("blocks.3.mlp.act", "layer4.0.act1", "a_b-c"):
        assert file_stem(name) == name
    others = numbered(map(file_stem, ["test:12", "test 12", "..", ".hidden"]))
    assert others == ["test-12", "test-12-2", "unnamed", "hidden"]


# --- untrusted text ------------------------------------------------------------------------------


def everywhere(folder, text):
    """A site that shows ``text`` wherever it shows text."""
    other = f"{text}!"  # where two must differ
    shown = exemplar(name=text)
    first = {
        "top": [shown], "middle": [], "random": [shown._replace(map=None)], "rivals": [(1, 0.5)],
        "pushes": [(text, 0.5)], "nearest": [(text, 1, 0.5)],
    }  # fmt: skip
    likely = [(text, 0.7), ("deer", 0.2)]
    return written(
        folder, layers=(text, other), label=text, names=[text, other, "third"], first=first,
        run=text, summary=[(text, text)],
        explained=[explanation(unit(label=text), image=text, classes=likely, layer=text)],
    )  # fmt: skip


@pytest.mark.parametrize("text", NAUGHTY)
def test_untrusted_text_appears_as_text_wherever_it_is_shown(tmp_path, text):
    harmless = everywhere(tmp_path / "plain", "zzzz")
    found = everywhere(tmp_path / "report", text)
    assert len(found) == len(harmless) == 12
    for page, expected in zip(found.values(), harmless.values(), strict=True):
        assert page.shape == expected.shape
        assert " ".join(page.texts).count(text) == " ".join(expected.texts).count("zzzz") > 0
    assert list(dangling(tmp_path / "report")) == []


@pytest.mark.parametrize("text", NAUGHTY)
def test_the_data_of_the_table_are_whole_and_cannot_end_their_script(tmp_path, text):
    page = written(tmp_path / "report", label=text, layers=("act", text))["index.html"]
    assert page.data["rows"][0][2:4] == [f"{text} 0.0", f"{text} second"]
    assert page.data["layers"][1][0] == text
    assert "<" not in page.scripts[0]
    assert "NaN" not in page.scripts[0]
