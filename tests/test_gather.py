"""What the pages of a labelled run are gathered from, against passes over single images."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import commands.survey
import dissect
from commands.exemplars import choose
from commands.options import NetworkOptions
from commands.subject import open_subject
from commands.survey import gather, surveyed_at_once
from lwta.dissect.labels import Labels, labels_for
from lwta.dissect.survey import LayerSurvey, Survey
from lwta.errors import InputError
from models.images import read_image
from tests.by_hand import captured, winners
from tests.conftest import fit_shapes

LAYER = "blocks.0.mlp.act"
GRID = 4  # patches on a side


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of eight blocks, so that many units win, labelled on its 96 training images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    vit = "{img_size: 32, patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2, mlp_ratio: 8}"
    fit_shapes(folder, trainer__max_epochs=2, model__backbone_args=vit)
    dissect.main(["label", f"--run={folder}", "--probe=train"])
    return folder


def opened(run):
    subject = open_subject(NetworkOptions(run=str(run), device="cpu"))
    labels = labels_for(subject.folder, subject.identity["weights"], whole=True)
    assert labels is not None
    return subject, labels


def gathered(run, **options):
    return gather(*opened(run), **options)


@pytest.fixture(scope="module")
def site(run):
    """All that is gathered of the run, with its units."""
    found = gathered(run)
    return found._replace(units=list(found.units))


@pytest.fixture(scope="module")
def passes(run):
    """Input and output of the layer at every token, and logits, image by image: (96, T, D) twice, (96, C)."""
    subject, _ = opened(run)
    data, seen = subject.probe("train"), []
    for index in range(96):
        with torch.no_grad(), captured(subject.model.get_submodule(LAYER)) as layer:
            logits = subject.model(subject.transform(read_image(data, index)[0])[None])
        seen.append((layer["input"][0], layer["output"][0], logits[0]))
    return [torch.stack(parts) for parts in zip(*seen, strict=True)]


def targets(run):
    data = opened(run)[0].probe("train")
    return [read_image(data, index)[1] for index in range(96)]


def fired(passes):
    """bool (96, T, D)."""
    return torch.stack([torch.from_numpy(winners(h, 24)) for h in passes[0]])


def kinds(page):
    return page.top, page.middle, page.random


# --- units ---------------------------------------------------------------------------------------


def test_there_is_a_page_for_each_row_of_the_table_in_its_order(run, site):
    _, labels = opened(run)
    assert [(p.row["layer"], p.row["unit"]) for p in site.units] == [(LAYER, unit) for unit in range(192)]
    assert site.table.equals(labels.table)
    for page, row in zip(site.units, labels.table.to_dict("records"), strict=True):
        for name, value in row.items():
            missing = not isinstance(value, str | bool) and value != value  # NaN, NA
            assert page.row[name] == (None if name == "reason" and page.row["label"] else value) or missing
    assert {page.row["reason"] is None for page in site.units} == {True, False}


def test_the_hardest_wins_are_those_the_labels_were_made_from(run, site):
    _, labels = opened(run)
    for page in site.units:
        rows = labels.exemplars.query(f"unit == {page.row['unit']} and rank < 8").sort_values("rank")
        assert [e.image for e in page.top] == rows["image"].tolist()
        assert [e.value for e in page.top] == rows["value"].tolist()
        assert len(page.top) == min(8, page.row["wins"])


def test_exemplars_have_the_value_read_and_the_map_of_their_own_image(site, passes):
    _, out, _ = passes
    wins, maps = fired(passes), 0
    for page in site.units:
        unit = page.row["unit"]
        for e in (*page.top, *page.middle, *page.random):
            assert wins[e.image, 0, unit]  # at the class token, which is what the head reads
            assert e.value == pytest.approx(float(out[e.image, 0, unit]), abs=1e-5)
            expected = torch.where(wins[e.image, 1:, unit], out[e.image, 1:, unit], 0)
            np.testing.assert_allclose(e.map, expected.view(GRID, GRID), atol=1e-5)
            assert e.name == f"train:{e.image}"
            maps += int(e.map.any())
    assert maps > 50


def test_middle_and_random_exemplars_are_chosen_among_all_wins(site, passes):
    wins, values = fired(passes)[:, 0], passes[1][:, 0]
    middled = 0
    for page in site.units:
        unit = page.row["unit"]
        won = wins[:, unit].nonzero()[:, 0].tolist()
        assert page.row["wins"] == len(won)
        assert page.histogram.counts.sum() == len(won)
        for part in (page.middle, page.random):
            assert len({e.image for e in part}) == len(part) == min(4, len(won))
            assert {e.image for e in part} <= set(won)
        hardest = sorted(won, key=lambda i, unit=unit, n=page.row["negative"]: values[i, unit] * (2 * n - 1))
        start = max(0, (len(won) - 4) // 2)
        assert [e.image for e in page.middle] == hardest[start : start + 4]
        middled += int(start > 0)
    assert middled > 10


def test_the_middle_of_a_unit_that_wins_with_negative_values_counts_from_the_lowest():
    values = torch.tensor([[-1.0], [-5.0], [-3.0], [-2.0], [-6.0], [2.0], [9.0]])
    won = torch.tensor([[True]] * 6 + [[False]])
    layer = LayerSurvey(1, values, won, values, won.float().mean(0), None)
    found = Survey(10 + torch.arange(7), torch.zeros(7), torch.zeros(7), {LAYER: layer}, 1)
    unit = {"layer": [LAYER], "unit": [0]}
    listed = pd.DataFrame(unit | {"image": [14], "value": [-6.0]})
    for negative, middle in ((True, [11, 12, 13, 10]), (False, [10, 13, 12, 11])):
        labels = Labels(pd.DataFrame(unit | {"negative": [negative]}), listed, {}, {}, {LAYER: 1})
        shown = choose(labels, listed, found)[LAYER, 0]
        assert [image for image, _ in shown.middle] == middle
        assert shown.top == [(14, -6.0)]
        assert all(value == values[image - 10] for image, value in (*shown.middle, *shown.random))


def test_rivals_are_shares_of_the_wins_the_most_frequent_first(site, passes):
    found = 0
    for page in site.units:
        unit, seconds = page.row["unit"], []
        for h in passes[0][:, 0]:
            block = range(unit // 24 * 24, unit // 24 * 24 + 24)
            first, second = sorted(block, key=lambda u, h=h: float(h[u]))[:-3:-1]
            seconds += [second] * (first == unit)
        counts = {rival: seconds.count(rival) / len(seconds) for rival in seconds}
        assert len(page.rivals) == min(5, len(counts))
        for rival, share in page.rivals:
            assert share == pytest.approx(counts[rival])
        shares = [share for _, share in page.rivals]
        assert shares == sorted(counts.values(), reverse=True)[:5]
        found += len(page.rivals)
    assert found > 20


def test_the_classes_that_a_unit_pushes_have_names_and_come_largest_first(run, site, passes):
    names, best = opened(run)[0].class_names, passes[2].argmax(1)
    right = [int(k) if int(k) == t else None for k, t in zip(best, targets(run), strict=True)]
    seen = {names[k] for k in right if k is not None}
    pushed = {name for page in site.units for name, _ in page.pushes}
    assert pushed
    assert pushed <= seen
    for page in site.units:
        values = [value for _, value in page.pushes]
        assert values == sorted(values, reverse=True)
        assert len(values) <= 5
        assert all(value > 0 for value in values)
        assert len({name for name, _ in page.pushes}) == len(values)


def test_nearest_units_fire_on_the_same_images(site, passes):
    values = passes[1][:, 0] * fired(passes)[:, 0]
    found = 0
    for page in site.units:
        assert len(page.nearest) <= 5
        for layer, unit, cosine in page.nearest:
            expected = torch.cosine_similarity(values[:, page.row["unit"]], values[:, unit], dim=0)
            assert (layer, cosine) == (LAYER, pytest.approx(float(expected), abs=1e-5))
            found += 1
    assert found > 50


def test_a_dead_unit_has_a_page_with_nothing_on_it(site):
    dead = [page for page in site.units if not page.row["alive"]]
    assert dead
    for page in dead:
        assert kinds(page) == ([], [], [])
        assert (page.rivals, page.pushes, page.nearest) == ([], [], [])
        assert not page.histogram.counts.any()


# --- layers and classes --------------------------------------------------------------------------


def test_a_layer_is_summed_up_from_its_table_and_the_survey(site):
    (layer,) = site.layers
    assert (layer.layer, layer.units, layer.competitors) == (LAYER, 192, 24)
    assert layer.fired_per_position == pytest.approx(1 / 24)
    rows = [page.row for page in site.units]
    scores = [row["score"] for row in rows if row["label"] is not None]
    assert layer.dead == sum(row["wins"] == 0 for row in rows)
    assert layer.labelled == len(scores) > 0
    assert layer.label_score == pytest.approx(sum(scores) / len(scores))


def test_a_layer_without_labels_has_no_score(run):
    subject, labels = opened(run)
    none = labels._replace(table=labels.table.assign(label=None, score=math.nan))
    (layer,) = gather(subject, none).layers
    assert layer.labelled == 0
    assert math.isnan(layer.label_score)


def test_classes_count_their_images_and_those_rightly_predicted(run, site, passes):
    subject, _ = opened(run)
    true, best, wins = targets(run), passes[2].argmax(1).tolist(), fired(passes)[:, 0]
    assert [page.name for page in site.classes] == subject.class_names
    assert [page.index for page in site.classes] == list(range(len(site.classes)))
    for page in site.classes:
        own = [i for i, k in enumerate(true) if k == page.index]
        wrong = [i for i in own if best[i] != page.index]
        assert (page.images, page.right) == (len(own), len(own) - len(wrong))
        ((layer, units),) = page.layers
        assert (layer, units.errors) == (LAYER, len(wrong))
        assert sorted(units.error_classes) == sorted(
            (k, sum(best[i] == k for i in wrong)) for k in {best[i] for i in wrong}
        )
        torch.testing.assert_close(units.fires, wins[own].float().mean(0))
    assert sum(page.images for page in site.classes) == 96
    assert 0 < sum(page.right or 0 for page in site.classes) < 96


# --- which images --------------------------------------------------------------------------------


def test_a_sample_is_spread_evenly_over_the_probe_images(run):
    found = gathered(run, sample=10)
    spread = {k * 96 // 10 for k in range(10)}
    assert sum(page.images for page in found.classes) == 10
    units = list(found.units)
    shown = {e.image for page in units for part in (page.middle, page.random) for e in part}
    assert shown <= spread
    assert len(shown) > 5
    assert max(len(page.top) for page in units) == 8  # of all images


def test_images_elsewhere_than_in_the_runs_data_are_of_no_known_class(run, image_folder, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    images = image_folder / "train"
    dissect.main(["label", f"--run={folder}", f"--probe={images}"])
    found = gathered(folder)
    assert sum(page.images for page in found.classes) == 48
    for page in found.classes:
        assert page.right is None
        assert [units.errors for _, units in page.layers] == [0] * len(found.layers)
    names = {e.name for page in found.units for part in kinds(page) for e in part}
    assert names <= {str(path.relative_to(images)) for path in images.rglob("*.png")}
    assert len(names) > 20


def test_a_picture_is_the_image_as_the_network_saw_it(run, site):
    image = read_image(opened(run)[0].probe("train"), 7)[0]
    assert np.abs(np.asarray(site.picture(7), dtype=int) - np.asarray(image)).max() <= 1


@pytest.fixture
def photographed(run, image_folder, tmp_path):
    """A run labelled on files, two of which never decoded, and the files."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    images = Path(shutil.copytree(image_folder / "train", tmp_path / "images"))
    files = sorted(images.rglob("*.png"))
    for index in (0, 20):
        files[index].write_bytes(b"no image")
    dissect.main(["label", f"--run={folder}", f"--probe={images}"])
    return folder, files


def test_images_that_never_decoded_are_left_out(photographed):
    found = gathered(photographed[0])
    assert sum(page.images for page in found.classes) == 46
    assert not {e.image for page in found.units for part in kinds(page) for e in part} & {0, 20}


def test_an_exemplar_that_no_longer_decodes_is_refused_in_one_sentence(photographed):
    folder, files = photographed
    subject, labels = opened(folder)
    index = int(labels.exemplars.query("rank == 0")["image"].iloc[0])
    site = gather(subject, labels)
    kept = files[index].read_bytes()
    files[index].write_bytes(b"no image")
    sentence = f"an image that units of {LAYER} were labelled on is no longer there or does not decode"
    with pytest.raises(InputError, match=sentence):
        gather(subject, labels)
    with pytest.raises(InputError, match=f"the image {files[index].parent.name}.*no longer decodes"):
        site.picture(index)
    files[index].write_bytes(kept)
    for path in files[8:]:
        path.unlink()
    with pytest.raises(InputError, match=sentence):
        gather(*opened(folder))


# --- memory --------------------------------------------------------------------------------------


def test_a_survey_takes_as_many_images_at_once_as_memory_allows(run, monkeypatch):
    subject, _ = opened(run)
    sites = {LAYER: -1}
    volume = 17 * 192  # tokens x units
    assert surveyed_at_once(subject, sites, 32) == 32
    for values, expected in ((5 * volume, 5), (6 * volume - 1, 5), (10, 1)):
        monkeypatch.setattr(commands.survey, "_VALUES", (values, 0))
        assert surveyed_at_once(subject, sites, 32) == expected


def test_what_is_gathered_does_not_depend_on_the_batch_size(run, site):
    other = gathered(run, batch_size=7)
    for one, page in zip(site.units, other.units, strict=True):
        assert [(e.image, e.name) for part in kinds(one) for e in part] == [
            (e.image, e.name) for part in kinds(page) for e in part
        ]
        assert one.rivals == page.rivals
        assert [text for text, _ in one.pushes] == [text for text, _ in page.pushes]
        assert [v for _, v in one.pushes] == pytest.approx([v for _, v in page.pushes], rel=1e-3)
