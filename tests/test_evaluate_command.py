"""``evaluate`` from the command line: what it judges on, by what, and what it writes and says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import commands.judging
import dissect
from lwta.dissect.evaluation import read_evaluation
from lwta.dissect.labels import JUDGED, read_labels, write_labels
from lwta.dissect.truth import pairs_of, score_labels, score_pairs, true_concepts
from lwta.errors import InputError
from models.probes import split_back
from models.run import load_run
from models.shapes import CONCEPTS, Shapes, concept_pairs
from tests.conftest import COLOURS, TinyRun, coloured_image, refused, write_clip
from tests.toy import cosines, label_args, labelled, network, network_args, of_folder, outputs, pixels, toys

__all__ = ["toys"]

OTHERS = "validation[100:180]"


@pytest.fixture(scope="module")
def whole(shapes_run, tmp_path_factory):
    """A run on the embedded world, labelled on its validation images."""
    run = Path(shutil.copytree(shapes_run, tmp_path_factory.mktemp("runs") / "labelled"))
    dissect.main(["label", f"--run={run}", "--cache", str(run.parent / "cache")])
    return run


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(scope="module")
def colours(image_folder, tmp_path_factory):
    """A run that tells three colours apart, labelled by its classes."""
    run = tmp_path_factory.mktemp("runs") / "colours"
    TinyRun(image_folder, run).fit(trainer__max_epochs=4, model__lr=1e-2)
    dissect.main(["label", f"--run={run}", "--probe=train"])
    return run


def judge(run, *args):
    """Run ``evaluate``; the table of units and what was found."""
    dissect.main(["evaluate", f"--run={run}", "--resamples=0", *args])
    found = read_evaluation(run, read_labels(run).identity)
    assert found is not None
    return pd.read_csv(run / "evaluation.csv"), found


def values_by_hand(run, split, readout=lambda out: out[:, 0]):
    """What each labelled layer of a run reads, each image alone."""
    opened = load_run(run)
    values = {name: [] for name in read_labels(run).table["layer"].unique()}
    for name, rows in values.items():
        opened.model.backbone.get_submodule(name).register_forward_hook(
            lambda module, inputs, out, rows=rows: rows.append(readout(out)[0])
        )
    transform = opened.data.eval_transform()
    with torch.no_grad():
        for image, _ in Shapes(split, size=32):
            opened.model.backbone(transform(image)[None])
    return {name: torch.stack(rows) for name, rows in values.items()}


# --- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", OTHERS])
def test_every_number_is_that_of_the_images_of_the_split(run, capsys, split):
    table, found = judge(run, f"--probe={split}", "--batch_size=7")
    named = "test[:24]" if split == "test" else split
    values, presence = values_by_hand(run, named), Shapes(named).presence()
    labels = read_labels(run).table
    sign = np.where(labels["negative"], -1, 1)
    read = torch.cat(list(values.values()), 1).numpy() * sign
    scored = table["unscored"].isna()
    assert scored.any()
    for unit in np.flatnonzero(scored):
        column = presence[:, CONCEPTS.index(table["label"][unit])].numpy()
        assert table["correlation"][unit] == pytest.approx(np.corrcoef(read[:, unit], column)[0, 1], abs=1e-5)
        assert table["shown"][unit] == column.sum()
    assert (found.images, found.units, found.scored) == (len(presence), len(labels), scored.sum())
    assert sum(found.unscored.values()) == len(labels) - scored.sum()
    assert found.truth == pytest.approx(score_labels(labels, values, CONCEPTS, presence), nan_ok=True)
    pairs = score_pairs(labels, values, CONCEPTS, presence, pairs_of(concept_pairs(), presence))
    assert found.pairs == pytest.approx(pairs, nan_ok=True)
    said = capsys.readouterr().out
    assert f"on {len(presence)} images of {split}, from which no label was chosen" in said
    assert all(name in said for name in ("constant", "shuffled", "random"))


def test_labels_are_judged_at_their_own_readout_and_layers(run):
    dissect.main(["label", f"--run={run}", "--readout=mean", "--layers=blocks.0*"])
    table, found = judge(run, f"--probe={OTHERS}", "--num_workers=2")
    read = values_by_hand(run, OTHERS, readout=lambda out: out[:, 1:].mean(1))["blocks.0.mlp.act"]
    labels, presence = read_labels(run), Shapes(OTHERS).presence()
    assert labels.identity["readout"] == "mean"
    assert found.truth == pytest.approx(
        score_labels(labels.table, {"blocks.0.mlp.act": read}, CONCEPTS, presence), nan_ok=True
    )
    assert len(table) == 96


def test_labels_of_patches_are_judged_by_the_strongest_patch(run):
    dissect.main(["label", f"--run={run}", "--readout=patches"])
    table, _ = judge(run, f"--probe={OTHERS}")
    read = values_by_hand(
        run, OTHERS, readout=lambda out: out[:, 1:].masked_fill(out[:, 1:] == 0, -torch.inf).amax(1)
    )
    values = torch.cat(list(read.values()), 1)
    values = values.masked_fill(values.isinf(), 0).numpy() * np.where(
        read_labels(run).table["negative"], -1, 1
    )
    presence = Shapes(OTHERS).presence().numpy()
    for unit in np.flatnonzero(table["unscored"].isna())[:10]:
        column = presence[:, CONCEPTS.index(table["label"][unit])]
        assert table["correlation"][unit] == pytest.approx(
            np.corrcoef(values[:, unit], column)[0, 1], abs=1e-5
        )


def test_true_labels_are_found_true_and_false_ones_false(run, capsys):
    labels = read_labels(run)
    read = values_by_hand(run, OTHERS)["blocks.0.mlp.act"]
    sign = 1 - 2 * torch.tensor(labels.table["negative"].tolist()).float()
    truth = true_concepts(read * sign, Shapes(OTHERS).presence())
    told = [CONCEPTS[row.int().argmax()] if row.any() else "red" for row in truth]
    for text, share in ((told, "100.0 %"), ([None] * len(told), "0.0 %")):
        write_labels(run, labels._replace(table=labels.table.assign(label=text)))
        judge(run, f"--probe={OTHERS}")
        said = capsys.readouterr().out
        assert (
            f"{int(truth.any(1).sum())} selective units, {int((~truth.any(1)).sum())} not selective" in said
        )
        assert f"; {share} ± 0.0 of the selective ones carry a true label" in said


def test_scores_join_the_label_table_and_a_new_judgement_replaces_them(run):
    before = read_labels(run)
    assert before.table[JUDGED].isna().all(axis=None)
    table, _ = judge(run, f"--probe={OTHERS}")
    after = read_labels(run)
    pd.testing.assert_frame_equal(after.table.drop(columns=JUDGED), before.table.drop(columns=JUDGED))
    assert after.identity == before.identity
    for column, name in (("correlation", JUDGED[0]), ("auroc", JUDGED[1]), ("q_value", JUDGED[2])):
        np.testing.assert_allclose(after.table[name], table[column])
    assert pd.read_csv(run / "labels.csv")[JUDGED[0]].notna().sum() == table["correlation"].notna().sum()
    again, _ = judge(run, "--probe=validation[200:260]")
    assert not np.allclose(again["auroc"].dropna().mean(), table["auroc"].dropna().mean())
    np.testing.assert_allclose(read_labels(run).table[JUDGED[1]], again["auroc"])
    dissect.main(["label", f"--run={run}"])  # the same labels, of which the same holds
    pd.testing.assert_frame_equal(
        read_labels(run).table[JUDGED], after_again := pd.read_csv(run / "labels.csv")[JUDGED]
    )
    np.testing.assert_allclose(after_again[JUDGED[1]], again["auroc"])
    changed = read_labels(run)
    write_labels(run, changed._replace(table=changed.table.assign(label="red")))
    dissect.main(["label", f"--run={run}"])
    kept = read_labels(run).table
    assert kept.loc[kept["label"] != "red", JUDGED].isna().all(axis=None)
    dissect.main(["label", f"--run={run}", "--similarity=wpmi"])
    assert read_labels(run).table[JUDGED].isna().all(axis=None)


def test_labels_may_lie_elsewhere_and_stability_is_told(run, tmp_path, capsys):
    dissect.main(["label", f"--run={run}", f"--out={tmp_path / 'other'}", "--similarity=cos"])
    before = (run / "labels.parquet").read_bytes()
    dissect.main(
        ["evaluate", f"--run={run}", f"--labels={tmp_path / 'other'}", f"--probe={OTHERS}", "--resamples=2"]
    )
    assert (run / "labels.parquet").read_bytes() == before
    table = pd.read_csv(tmp_path / "other" / "evaluation.csv")
    labelled = table["label"].notna()
    assert set((2 * table.loc[labelled, "kept_images"]).tolist()) <= {0, 1, 2}
    assert table.loc[~labelled, "kept_images"].isna().all()
    assert "a label stays the same in" in capsys.readouterr().out


def test_the_pass_that_labels_came_from_is_made_again_where_its_record_is_gone(run, tmp_path):
    args = ["evaluate", f"--run={run}", f"--probe={OTHERS}", "--resamples=3"]
    found = []
    for cache in ("first", "second"):
        dissect.main([*args, f"--cache={tmp_path / cache}"])
        found.append(pd.read_csv(run / "evaluation.csv"))
    pd.testing.assert_frame_equal(*found)
    assert found[0]["kept_images"].notna().any()


# --- what it is judged on ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split", ["validate", "validation", "validation[:40]", "validation[39:60]", "validation[10:20]"]
)
def test_no_label_is_judged_on_an_image_that_it_was_chosen_from(run, split):
    message = refused(dissect.main, ["evaluate", f"--run={run}", f"--probe={split}"])
    assert (
        f"labels were chosen from validate, which shares images with {split}; name others with --probe"
        in message
    )
    assert not (run / "evaluation.json").exists()


def test_without_a_probe_images_are_judged_that_no_label_was_chosen_from(run, monkeypatch):
    monkeypatch.setattr(commands.judging, "HELD_OUT", "validation[10000:10030]")
    _, found = judge(run)
    assert (found.images, found.probe) == (30, "validation[10000:10030]")
    dissect.main(["label", f"--run={run}", "--probe=validation[10020:10050]"])
    message = refused(dissect.main, ["evaluate", f"--run={run}"])
    assert (
        "labels were chosen from all of validation[10020:10050]; name other images with --probe, or keep"
        in message
    )


def test_images_kept_back_are_those_that_labels_are_judged_on(run):
    dissect.main(["label", f"--run={run}", "--probe=validation[:100]", "--keep_back=0.4"])
    labels = read_labels(run)
    assert labels.exemplars["image"].max() < 60
    assert labels.options["keep_back"] == 0.4
    _, found = judge(run)
    assert (found.images, found.probe) == (40, "validation[:100] that label kept back")
    _, found = judge(run, f"--probe={OTHERS}")
    assert found.probe == OTHERS
    message = refused(dissect.main, ["evaluate", f"--run={run}", "--probe=validation[:30]"])
    assert "shares images with validation[:30]" in message


def test_other_keepings_are_other_labels(run):
    identities = []
    for share in ("0.5", "0.25"):
        dissect.main(["label", f"--run={run}", "--probe=validation[:100]", f"--keep_back={share}"])
        identities.append(read_labels(run).identity["images"])
    assert identities[0] != identities[1]


@pytest.mark.parametrize("share", ["1", "-0.1", "0.001"])
def test_a_share_that_leaves_nothing_is_refused(run, share):
    message = refused(dissect.main, ["label", f"--run={run}", f"--keep_back={share}"])
    assert "it lies between 0 and 1" in message


def test_measured_concepts_and_embeddings_are_of_all_images_also_where_some_are_kept_back(run, tmp_path):
    presence = Shapes("validation[:100]").presence().numpy()
    pd.DataFrame(presence, columns=CONCEPTS).to_csv(tmp_path / "told.csv", index=False)
    asked = ["label", f"--run={run}", "--probe=validation[:100]", "--keep_back=0.4"]
    dissect.main([*asked, f"--concepts={tmp_path / 'told.csv'}"])
    found = read_labels(run)
    stays, _ = split_back(Shapes("validation[:100]", 32), 0.4)
    (tmp_path / "part.csv").write_text(
        pd.DataFrame(presence[stays.indices], columns=CONCEPTS).to_csv(index=False)
    )
    message = refused(dissect.main, [*asked, f"--concepts={tmp_path / 'part.csv'}"])
    assert "has 60 rows and the probe set 100 images" in message
    np.save(tmp_path / "images.npy", presence)
    np.save(tmp_path / "texts.npy", np.eye(len(CONCEPTS), dtype=np.float32))
    (tmp_path / "words.txt").write_text("\n".join(CONCEPTS))
    files = [f"--image_embeddings={tmp_path / 'images.npy'}", f"--text_embeddings={tmp_path / 'texts.npy'}"]
    dissect.main([*asked, f"--concepts={tmp_path / 'words.txt'}", *files, "--similarity=cos"])
    by_file = read_labels(run).table["label"]
    dissect.main([*asked, f"--concepts={tmp_path / 'told.csv'}", "--similarity=cos"])
    assert by_file.equals(read_labels(run).table["label"])
    assert found.options["keep_back"] == 0.4


def test_images_of_ones_own_are_not_kept_back(toys):
    with pytest.raises(InputError, match="keep_back is of images that --probe names"):
        dissect.dissect(
            network().model,
            probe=Shapes("validation[:60]", 32),
            concepts="shapes",
            clip="shapes",
            keep_back=0.5,
        )


def test_splits_of_one_table_that_overlap_are_refused(parquet_folder, tmp_path):
    table = TinyRun(parquet_folder, tmp_path / "run")
    splits = {"train": "train[:30]", "val": "train[20:40]", "test": "train[40:]"}
    named = {f"data__{stage}_split": split for stage, split in splits.items()}
    keys = "{input_key: img, target_key: label}"
    table.fit(trainer__max_epochs=1, data__name="hfds", data__dataset_args=keys, **named)
    dissect.main(["label", f"--run={table.folder}", "--probe=validate"])
    for probe in ("train", "train[25:35]"):
        message = refused(dissect.main, ["evaluate", f"--run={table.folder}", f"--probe={probe}"])
        assert f"labels were chosen from validate, which shares images with {probe}" in message
    # The test split shares none, and is small.
    message = refused(dissect.main, ["evaluate", f"--run={table.folder}", "--resamples=0"])
    assert "no label can be judged on test" in message


# --- what judges ---------------------------------------------------------------------------------


def test_classes_judge_labels_that_are_classes(by_colour, more):
    table, found = judge(by_colour, f"--probe={more}")
    assert (found.judge, found.probe, found.images) == ("the images' classes", str(more), 48)
    assert found.truth is None
    assert set(table["unscored"].dropna()) == {"no label"}
    # Of the 24 images of the test split eight are of each class, fewer than ten.
    message = refused(dissect.main, ["evaluate", f"--run={by_colour}"])
    assert "no label can be judged on test, and nothing was written: " in message
    assert f"units, too few images show it, fewer than 10 ({table['label'].dropna().iloc[0]!r}" in message


@pytest.fixture
def more(tmp_path):
    """A folder of 48 other images of the colours."""
    rng = np.random.default_rng(7)
    for name, colour in COLOURS.items():
        (tmp_path / "more" / name).mkdir(parents=True)
        for i in range(16):
            coloured_image(colour, rng).save(tmp_path / "more" / name / f"{i:03}.png")
    return tmp_path / "more"


@pytest.fixture
def described(tmp_path):
    """Annotations of those images, by file name: their colour."""
    names = [f"{colour}/{i:03}.png" for colour in COLOURS for i in range(16)]
    table = {"image": names} | {
        colour: [float(name.startswith(colour)) for name in names] for colour in COLOURS
    }
    pd.DataFrame(table).to_csv(tmp_path / "told.csv", index=False)
    return tmp_path / "told.csv"


@pytest.fixture
def by_colour(colours, tmp_path):
    """A copy of the colours that a test may change."""
    return Path(shutil.copytree(colours, tmp_path / "colours"))


def test_annotations_judge_and_what_they_miss_is_named_and_left_out(by_colour, more, described, capsys):
    whole, found = judge(by_colour, f"--probe={more}", f"--annotations={described}")
    by_class, _ = judge(by_colour, f"--probe={more}")
    assert found.judge == f"the annotations of {described}"
    assert found.scored > 0
    pd.testing.assert_frame_equal(whole, by_class)
    table = pd.read_csv(described)
    table.drop(index=range(0, 48, 8)).to_csv(described, index=False)
    capsys.readouterr()
    some, found = judge(by_colour, f"--probe={more}", f"--annotations={described}")
    assert "left out 6 images without annotation, such as 'blue/000.png'" in capsys.readouterr().err
    assert found.images == 42
    assert set(some["shown"].dropna()) == {14}
    more_rows = pd.concat([table, table.head(2).assign(image=["x.png", "y.png"])])
    more_rows.drop(columns="red").assign(moss=0.0).to_csv(described, index=False)
    some, found = judge(by_colour, f"--probe={more}", f"--annotations={described}")
    said = capsys.readouterr().err
    assert f"{described} tells of 2 images that are not judged on, such as 'x.png'" in said
    assert (
        f"no label was chosen from 1 concepts of {described}, which serve as controls, such as 'moss'" in said
    )
    red = whole["label"] == "red"
    assert (some.loc[red, "unscored"] == "the label is no concept of the judge").all()
    assert found.unscored["the label is no concept of the judge ('red')"] == red.sum()
    assert some.loc[red, "correlation"].isna().all()


def test_too_few_annotations_are_refused(by_colour, more, described):
    pd.read_csv(described).head(15).to_csv(described, index=False)
    message = refused(
        dissect.main, ["evaluate", f"--run={by_colour}", f"--probe={more}", f"--annotations={described}"]
    )
    assert "tells of 15 of the 48 images, too few to judge by; annotate more" in message


def test_another_clip_judges_by_its_own_cosines_and_the_same_one_is_called_circular(run, tmp_path, capsys):
    clip = write_clip(tmp_path / "clip", seed=3)
    table, found = judge(run, f"--probe={OTHERS}", f"--judge={clip}", "--shown=0.2")
    assert (found.circular, found.judge.split(" ")[:2]) == (False, ["the", "CLIP"])
    assert found.truth is not None  # whoever judges
    assert set(table["shown"].dropna()) == {16}
    assert "circular" not in capsys.readouterr().out
    own, found = judge(run, f"--probe={OTHERS}", "--judge=shapes", "--shown=0.2")
    assert found.circular
    assert "(circular: it also chose the labels)" in capsys.readouterr().out
    seen = cosines([image for image, _ in Shapes(OTHERS, 32)], CONCEPTS)
    read = torch.cat(list(values_by_hand(run, OTHERS).values()), 1).numpy()
    read *= np.where(read_labels(run).table["negative"], -1, 1)
    for unit in np.flatnonzero(own["unscored"].isna()):
        column = seen[:, CONCEPTS.index(own["label"][unit])]
        assert own["correlation"][unit] == pytest.approx(np.corrcoef(read[:, unit], column)[0, 1], abs=1e-4)
        nearest = np.argsort(-column)[:16]
        area = roc_auc_score(np.isin(np.arange(80), nearest), read[:, unit])
        assert own["auroc"][unit] == pytest.approx(area, abs=1e-4)


def test_labels_that_are_pairs_are_judged_by_pairs(run):
    dissect.main(["label", f"--run={run}", "--concepts=[shapes, shapes_pairs]", "--probe=validation[:400]"])
    table, found = judge(run, "--probe=validation[400:900]")
    pairs = {name: places for places, name in concept_pairs().items()}
    told = table[table["label"].isin(list(pairs))]
    assert len(told) > 0
    presence = Shapes("validation[400:900]").presence().numpy()
    for _, row in told.iterrows():
        a, b = pairs[row["label"]]
        count = int((presence[:, a] * presence[:, b]).sum())
        assert (
            row["unscored"] == f"{count} images show it, fewer than 10"
            if count < 10
            else row["shown"] == count
        )
    assert found.pairs is not None


def test_generated_images_of_each_concept_may_judge_too(by_colour, more, tmp_path, capsys):
    rng = np.random.default_rng(9)
    for name, count in (("red", 12), ("green", 9)):  # blue was forgotten
        (tmp_path / "made" / name).mkdir(parents=True)
        for i in range(count):
            coloured_image(COLOURS[name], rng).save(tmp_path / "made" / name / f"{i}.png")
    plain, _ = judge(by_colour, f"--probe={more}")
    table, found = judge(by_colour, f"--probe={more}", f"--generated={tmp_path / 'made'}")
    pd.testing.assert_frame_equal(table[plain.columns], plain)
    judged = table["generated_auroc"].notna()
    assert set(table.loc[judged, "label"]) == {"red"}
    assert (judged == (table["label"] == "red")).all()
    few, none, unlabelled = (
        (table["label"] == "green").sum(),
        (table["label"] == "blue").sum(),
        table["label"].isna().sum(),
    )
    reasons = {
        "too few images show it, fewer than 10 ('green')": few,
        "no images were generated of the label ('blue')": none,
        "no label": unlabelled,
    }
    assert found.unscored_generated == {reason: n for reason, n in reasons.items() if n}
    assert few
    assert none
    row = found.mean("generated_auroc")
    assert (row["units"], row["label"]) == (judged.sum(), pytest.approx(table["generated_auroc"].mean()))
    said, said_aside = capsys.readouterr()
    assert "generated_auroc" in said
    assert "generated_mad" in said
    (line,) = [line for line in said.splitlines() if line.startswith("not judged by generated images: ")]
    assert f"{few} units, too few images show it, fewer than 10 ('green')" in line
    assert f"{none} units, no images were generated of the label ('blue')" in line
    told = f"{tmp_path / 'made'} has no folder for the label of {none} units, such as 'blue'"
    assert told in said_aside
    (tmp_path / "loose").mkdir()
    coloured_image(COLOURS["red"], rng).save(tmp_path / "loose" / "a.png")
    message = refused(
        dissect.main,
        ["evaluate", f"--run={by_colour}", f"--probe={more}", f"--generated={tmp_path / 'loose'}"],
    )
    assert "holds no folder for each concept; put the images of red star into red_star" in message


def test_layers_of_which_some_units_are_labelled_stay_in_the_table(run):
    labels = read_labels(run)
    again = labels.table.copy()
    half = again[again["unit"] < 48].assign(layer="blocks.9.mlp.act")
    units = labels.units | {"blocks.9.mlp.act": 96}
    write_labels(run, labels._replace(table=pd.concat([again, half]), units=units))
    table, _ = judge(run, f"--probe={OTHERS}")
    assert len(table) == 96
    after = read_labels(run)
    assert (after.table["layer"] == "blocks.9.mlp.act").sum() == 48
    assert after.units == units
    assert after.table[JUDGED[1]].notna().any()


# --- class units, and networks without a run -----------------------------------------------------


def test_units_that_are_classes_are_held_against_the_names_of_the_classes(colours, tmp_path, capsys):
    run = Path(shutil.copytree(colours, tmp_path / "colours"))
    dissect.main(["label", f"--run={run}", "--probe=train", "--layers=head", "--readout=mean"])
    _, found = judge(run, "--probe=validate")
    labels = read_labels(run).table["label"].fillna("").tolist()
    assert found.classes is not None
    assert found.classes.top1 == sum(a == b for a, b in zip(labels, COLOURS, strict=True)) / 3
    assert "head: " in capsys.readouterr().out


def test_any_network_is_judged_where_images_are_named(toys, capsys):
    labelled(*label_args())
    message = refused(dissect.main, ["evaluate", *network_args(), "--out=out"])
    assert "labels were chosen from all of shapes:validation[:120]; name other images with --probe" in message
    probe = "shapes:validation[500:600]"
    dissect.main(["evaluate", *network_args(), "--out=out", f"--probe={probe}", "--resamples=0"])
    table = pd.read_csv("out/evaluation.csv")
    world = Shapes("validation[500:600]", 32)
    net = network()
    seen = pixels(net, [image for image, _ in world])
    found = {layer: outputs(net.model, layer, seen) for layer in table["layer"].unique()}
    presence = world.presence().numpy()
    for _, row in table[table["unscored"].isna()].iterrows():
        out = found[row["layer"]][:, row["unit"]]
        values = (out if out.ndim == 1 else out.mean((1, 2))).numpy()
        expected = np.corrcoef(values, presence[:, CONCEPTS.index(row["label"])])[0, 1]
        assert row["correlation"] == pytest.approx(expected, abs=1e-5)
    assert table["unscored"].isna().any()
    assert of_folder("out").table[JUDGED[0]].notna().any()
    assert "the factors of the embedded world" in capsys.readouterr().out


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--probe=holdout"], "shapes has no split 'holdout'"),
        (["--batch_size=0"], "batch_size is at least 1"),
        (["--num_workers=-1"], "num_workers at least 0"),
        (["--resamples=-1"], "resamples is at least 0"),
        (["--top=0"], "top is a share of the images, between 0 and 1"),
        (["--shown=1"], "shown is a share of the images, between 0 and 1"),
        (["--judge_tag=openai"], "judge_tag and judge_templates are of a --judge; name it"),
        (["--judge=shapes", "--annotations=a.csv"], "give either annotations or a judge"),
        (["--judge=nothing"], "open_clip knows no model 'nothing'"),
        (["--annotations=none.csv"], "there is no table of annotations none.csv"),
        (["--generated=nowhere"], "there is no folder nowhere of generated images"),
        (["--labels=nowhere"], "nowhere has no labels to judge"),
    ],
)
def test_bad_input_is_one_sentence_and_loses_nothing(run, options, sentence):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    message = refused(dissect.main, ["evaluate", f"--run={run}", f"--probe={OTHERS}", *options])
    assert sentence in message
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_runs_without_labels_and_data_that_nothing_tells_of_are_refused(shapes_run, colours, tmp_path):
    message = refused(dissect.main, ["evaluate", f"--run={shapes_run}"])
    assert (
        f"{shapes_run} has no labels to judge; make them with dissect.py label --run {shapes_run}" in message
    )
    run = Path(shutil.copytree(colours, tmp_path / "colours"))
    (tmp_path / "words.txt").write_text("sea\nleaf\nfire\n")
    clip = write_clip(tmp_path / "clip")
    dissect.main(["label", f"--run={run}", f"--concepts={tmp_path / 'words.txt'}", f"--clip={clip}"])
    message = refused(dissect.main, ["evaluate", f"--run={run}"])
    assert "nothing tells which of the images show 'sea' and the other concepts; give a table with" in message
    (tmp_path / "words.txt").write_text("sea\nleaf\nsnow\n")
    message = refused(dissect.main, ["evaluate", f"--run={run}"])
    assert "were made from has changed since; make them anew with dissect.py label" in message


def test_labels_of_other_weights_are_not_judged(run):
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    torch.save(checkpoint | {"global_step": -1}, best)
    assert "was made from other weights" in refused(dissect.main, ["evaluate", f"--run={run}"])


def test_where_no_label_can_be_judged_that_is_said_and_nothing_is_written(run):
    judge(run, f"--probe={OTHERS}")
    before = {path: path.read_bytes() for path in run.glob("*.*")}
    message = refused(dissect.main, ["evaluate", f"--run={run}", "--probe=validation[100:108]"])
    assert "no label can be judged on validation[100:108], and nothing was written: " in message
    assert "too few images show it, fewer than 10 (" in message
    assert {path: path.read_bytes() for path in run.glob("*.*")} == before


def test_a_second_judgement_goes_into_a_folder_of_its_own(run, tmp_path):
    judge(run, f"--probe={OTHERS}")
    before = {path: path.read_bytes() for path in run.glob("*.*")}
    dissect.main(
        ["evaluate", f"--run={run}", f"--labels={run}", f"--out={tmp_path / 'two'}", "--judge=shapes",
         f"--probe={OTHERS}", "--shown=0.2", "--resamples=0"]
    )  # fmt: skip
    assert {path: path.read_bytes() for path in run.glob("*.*")} == before
    labels = read_labels(tmp_path / "two")
    assert labels is not None
    found = read_evaluation(tmp_path / "two", labels.identity)
    assert found is not None
    assert found.circular
    message = refused(dissect.main, ["evaluate", f"--run={run}", f"--out={tmp_path / 'none'}"])
    assert f"--out {tmp_path / 'none'}, or name the folder of others with --labels" in message


@pytest.mark.parametrize("scored", [1, 2])
def test_pages_and_comparisons_stand_where_hardly_a_label_could_be_judged(run, scored, capsys):
    labels = read_labels(run)
    places = judge(run, f"--probe={OTHERS}")[0]["correlation"].dropna().index[:scored]
    label = [text if k in places else None for k, text in enumerate(labels.table["label"])]
    write_labels(run, labels._replace(table=labels.table.assign(label=label)))
    _, found = judge(run, f"--probe={OTHERS}")
    assert found.scored == scored
    dissect.main(["report", f"--run={run}"])
    dissect.main(["compare", str(run), f"--out={run / 'compared'}"])
    said = capsys.readouterr().out
    *_, told = [line for line in said.splitlines() if line.startswith("better than chance, of labels judged")]
    assert told.endswith(f" of {scored}")


def test_words_are_compared_without_regard_to_case_by_judge_and_truth_alike(run):
    before = judge(run, f"--probe={OTHERS}")[1]
    labels = read_labels(run)
    write_labels(run, labels._replace(table=labels.table.assign(label=labels.table["label"].str.upper())))
    after = judge(run, f"--probe={OTHERS}")[1]
    assert str(after.truth) == str(before.truth)
    assert after.scored == before.scored > 0


def test_a_damaged_evaluation_is_written_anew(run):
    (run / "evaluation.json").write_text("{")
    judge(run, f"--probe={OTHERS}")
    assert json.loads((run / "evaluation.json").read_text())["images"] == 80
