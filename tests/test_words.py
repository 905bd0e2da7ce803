"""Labels by words that an open_clip model looks for, from the command line, and when they are made anew."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import commands.question
import dissect
from lwta.dissect import similarity
from lwta.dissect.labels import COLUMNS, read_labels
from lwta.dissect.stream import Activations
from models.run import load_run
from models.shapes import CONCEPTS
from tests.conftest import CLIP, SPLITS, TinyRun, refused

WORDS = ["blue", "leaf", "a red square", "sea", "blé"]
LAYERS = ["blocks.0.mlp.act", "blocks.1.mlp.act"]
LAST = f"--layers={LAYERS[1]}"
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A run that tells three colours apart."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    TinyRun(image_folder, folder).fit(trainer__max_epochs=6, model__lr=1e-2)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "colours"))


@pytest.fixture
def words(tmp_path):
    """A concept list."""
    (tmp_path / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return tmp_path / "words.txt"


@pytest.fixture
def asked(run, words, clip_folder):
    """The arguments that label by words; the last of an option holds."""
    return [f"--run={run}", f"--concepts={words}", f"--clip={clip_folder}", "--probe=train"]


@pytest.fixture
def passes(monkeypatch):
    """Every pass over a probe set, by what saw its images: ``clip``, and the layers of the network."""
    made, run_pass = [], commands.question.run_pass

    def counted(consumers, *args, **options):
        layers = [name for c in consumers if isinstance(c, Activations) for name in c.sites]
        made.append(["clip"] * any(not isinstance(c, Activations) for c in consumers) + layers)
        return run_pass(consumers, *args, **options)

    monkeypatch.setattr(commands.question, "run_pass", counted)
    return made


@pytest.fixture
def priors(monkeypatch):
    """The number of units behind every prior of a layer that was computed."""
    made, common = [], similarity.common

    def counted(likelihood):
        made.append(len(likelihood))
        return common(likelihood)

    monkeypatch.setattr(similarity, "common", counted)
    return made


def same_labels(one, other):
    """But for what they were made from."""
    own, others = (labels.table.drop(columns="fingerprint") for labels in (one, other))
    pd.testing.assert_frame_equal(own, others, rtol=1e-4)
    pd.testing.assert_frame_equal(one.exemplars, other.exemplars, rtol=1e-4)
    assert one.units == other.units


def differing(labels, before):
    """What labels depend on that was not so before."""
    return {k for k in labels.identity | before.identity if labels.identity.get(k) != before.identity.get(k)}


def explained(capsys, args):
    """The units named, those that fired and their rivals, layer by layer, and what was said beside."""
    capsys.readouterr()
    dissect.main(["explain", *args, "--json"])
    said = capsys.readouterr()
    layers = json.loads(said.out)[0]["layers"]
    named = {
        layer["layer"]: {u["unit"]: u["label"] for one in layer["fired"] for u in (one, *one["rivals"])}
        for layer in layers
    }
    return named, said.err


# --- the labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("templates", [["{}"], ["a photo of a {}.", "{} on a wall"]])
def test_labels_are_those_of_a_matrix_that_open_clip_made_by_hand(
    run, asked, clip_folder, tmp_path, templates
):
    dissect.main(["label", *asked, f"--templates={json.dumps(templates)}"])
    found = read_labels(run)
    assert set(found.table["label"].dropna()) <= set(WORDS)
    assert found.table["label"].nunique() > 1
    assert found.identity.keys() == {
        "weights", "images", "transform", "readout", "probe", "concepts", "clip", "templates", "similarity",
        "prior",
    }  # fmt: skip
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    images = load_run(run).data.dataset("train")
    with torch.no_grad():
        shown = model.eval().encode_image(
            torch.stack([transform(image) for image, _ in images]), normalize=True
        )
        columns = []
        for word in WORDS:
            prompts = model.encode_text(tokenizer([t.format(word) for t in templates]), normalize=True)
            columns.append(shown @ torch.nn.functional.normalize(prompts.mean(0), dim=0))
    matrix = pd.DataFrame(torch.stack(columns, 1).numpy(), columns=WORDS)
    matrix.to_parquet(tmp_path / "matrix.parquet")
    dissect.main(["label", f"--run={run}", "--probe=train", f"--concepts={tmp_path / 'matrix.parquet'}"])
    same_labels(found, read_labels(run))


def test_neither_batches_nor_loader_processes_change_a_label(run, asked, passes):
    dissect.main(["label", *asked])
    found = read_labels(run)
    dissect.main(["label", *asked, "--batch_size=7", "--num_workers=2", "--force"])
    assert passes == [["clip", *LAYERS]] * 2
    same_labels(found, read_labels(run))


def test_the_images_go_to_loader_processes_that_start_anew_as_on_a_mac(asked, monkeypatch):
    loaded, loader = [], commands.question.DataLoader
    monkeypatch.setattr(
        commands.question,
        "DataLoader",
        lambda images, *args, **kw: loaded.append(images) or loader(images, *args, **kw),
    )
    dissect.main(["label", *asked])
    (images,) = loaded
    _, sent, _ = pickle.loads(pickle.dumps(images))[3]
    assert all(torch.equal(one, other) for one, other in zip(sent, images[3][1], strict=True))
    assert [tuple(pixels.shape) for pixels in sent] == [(3, 16, 16)] * 2


def test_classes_are_words_for_an_encoder_and_the_embedded_world_has_both(run, clip_folder):
    dissect.main(["label", f"--run={run}", f"--clip={clip_folder}", "--probe=train"])
    assert set(read_labels(run).table["label"].dropna()) <= {"blue", "green", "red"}
    assert "clip" in read_labels(run).identity
    dissect.main(["label", f"--run={run}", "--concepts=shapes", "--clip=shapes", "--probe=train"])
    labels = read_labels(run)
    assert set(labels.table["label"].dropna()) <= set(CONCEPTS)
    assert labels.identity["clip"].startswith("local-dir:shapes_clip ")


def test_the_images_kept_beside_a_label_are_those_of_its_hardest_wins(run, asked):
    dissect.main(["label", *asked])
    labels = read_labels(run)
    opened = load_run(run)
    images = opened.data.dataset("train")
    read = {}
    for name in LAYERS:
        opened.model.backbone.get_submodule(name).register_forward_hook(
            lambda module, inputs, out, name=name: read.update({name: out[:, 0]})
        )
    transform = opened.data.eval_transform()
    with torch.no_grad():
        opened.model.backbone(torch.stack([transform(image) for image, _ in images]))
    for row in labels.table.to_dict("records"):
        layer, unit, sign = row["layer"], row["unit"], -1 if row["negative"] else 1
        values = read[layer][:, unit] * sign
        wanted = [i for i in values.argsort(descending=True).tolist() if values[i] > 0]
        kept = labels.exemplars.query("layer == @layer and unit == @unit")
        held = kept["image"].tolist()
        assert kept["rank"].tolist() == list(range(len(wanted)))  # none won on more than are kept
        torch.testing.assert_close(values[held], values[wanted[: len(held)]])
        np.testing.assert_allclose(kept["value"], sign * values[held], rtol=1e-4)
        assert len(set(held)) == len(held)
    names = [Path(path) for path, _ in images.reader.samples]
    for image, name in labels.exemplars[["image", "name"]].itertuples(index=False):
        assert names[image].parts[-2:] == Path(name).parts


def test_the_csv_tells_the_same_as_the_parquet_file_also_where_layers_were_labelled_apart(run, asked):
    for layer in LAYERS:
        dissect.main(["label", *asked, f"--layers={layer}"])
    labels, again = read_labels(run), pd.read_csv(run / "labels.csv")
    pd.testing.assert_frame_equal(again.astype(COLUMNS), labels.table)
    assert len(again) == 2 * 96
    assert labels.units == dict.fromkeys(LAYERS, 96)


def test_a_broken_image_counts_nowhere(run, asked, image_folder, tmp_path, capsys):
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    broken = sorted((data / "train" / "green").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:40])
    dissect.main(["label", *asked, f"--root={data}"])
    assert f"left out 1 images that do not decode: green/{broken.name}" in capsys.readouterr().err
    labels = read_labels(run)
    assert (labels.table.groupby(["layer", "block"])["wins"].sum() == SPLITS["train"] - 1).all()
    assert SPLITS["train"] // 3 + 2 not in labels.exemplars["image"].tolist()


# --- explain labels what fired -------------------------------------------------------------------


def test_explain_labels_the_units_that_fired_and_only_once(run, asked, passes, capsys):
    fired, said = explained(capsys, [*asked, "test:0", LAST])
    assert passes == [["clip", LAYERS[1]]]  # the only one explained
    labels = read_labels(run)
    assert labels.partial == [LAYERS[1]]
    assert labels.table["unit"].tolist() == sorted(fired[LAYERS[1]])
    assert len(labels.table) == 3 * 96 // 24  # of each block the winner and two rivals
    told = labels.table.set_index("unit")["label"]
    assert all(
        label == (told[unit] if pd.notna(told[unit]) else None) for unit, label in fired[LAYERS[1]].items()
    )
    assert set(fired[LAYERS[1]].values()) & set(WORDS)
    assert explained(capsys, [*asked, "test:0", LAST]) == (fired, said)
    assert explained(capsys, [f"--run={run}", "test:0", LAST]) == (fired, said)  # as they were asked for
    assert len(passes) == 1


def test_explain_adds_what_other_images_make_fire_and_label_the_rest(run, asked, passes, priors, capsys):
    first, _ = explained(capsys, [*asked, "test:0", LAST])
    heard = [*priors]
    other, said = explained(capsys, [f"--run={run}", f"test:{SPLITS['test'] - 1}", LAST])
    added = other[LAYERS[1]].keys() - first[LAYERS[1]].keys()
    assert added  # else nothing is tested here
    assert "labelled anew" not in said
    some = read_labels(run)
    assert some.table["unit"].tolist() == sorted({*first[LAYERS[1]], *other[LAYERS[1]]})
    assert len(passes) == 1
    assert len(heard) == 1
    assert priors == heard  # the layer's prior was made once
    assert heard[0] > some.table["label"].count()  # of all its units, not of those asked for
    explained(capsys, [*asked, "test:0", "--layers=blocks.*"])
    assert passes[1:] == [[LAYERS[0]]]  # a layer that no image was shown
    assert sorted(read_labels(run).partial) == LAYERS
    dissect.main(["label", *asked])
    assert len(passes) == 2
    whole = read_labels(run)
    assert whole.partial == []
    assert whole.table["layer"].tolist() == [LAYERS[0]] * 96 + [LAYERS[1]] * 96
    assert list(whole.units) == LAYERS  # in the network's order, whichever came first
    assert whole.identity == some.identity
    later = whole.table.merge(some.table[["layer", "unit"]])
    pd.testing.assert_frame_equal(later, some.table, rtol=1e-4)
    kept = whole.exemplars.merge(some.table[["layer", "unit"]])
    pd.testing.assert_frame_equal(kept, some.exemplars)


def test_the_labels_of_explain_are_those_of_label_alone(run, asked, tmp_path):
    """Whichever comes first."""
    for place in (0, 9, SPLITS["test"] - 1):
        dissect.main(["explain", *asked, f"test:{place}", "--layers=*"])
    some = read_labels(run)
    dissect.main(["label", *asked, f"--out={tmp_path / 'out'}", f"--cache={tmp_path / 'another'}"])
    whole = read_labels(tmp_path / "out")
    for found, wanted in ((some.table, whole.table), (some.exemplars, whole.exemplars)):
        rows = wanted.merge(some.table[["layer", "unit"]])
        pd.testing.assert_frame_equal(found, rows, rtol=1e-4)
    assert 8 < len(some.table) < 2 * 96


def test_explain_takes_the_labels_that_label_made(run, asked, passes):
    dissect.main(["label", *asked])
    whole = read_labels(run)
    dissect.main(["explain", *asked, "test:0"])
    dissect.main(["explain", f"--run={run}", "test:0"])  # nothing asked for: whatever labels there are
    assert passes == [["clip", *LAYERS]]
    same_labels(read_labels(run), whole)


def test_explain_without_options_labels_by_the_classes_of_the_data(run, passes, capsys):
    fired, _ = explained(capsys, [f"--run={run}", "test:0", "--layers=*"])
    assert passes == [LAYERS]
    labels = read_labels(run)
    assert "clip" not in labels.identity
    assert labels.identity["probe"] == "validate"
    assert labels.options == {}
    units = labels.table.groupby("layer")["unit"].agg(list).to_dict()
    assert units == {layer: sorted(found) for layer, found in fired.items()}
    dissect.main(["label", f"--run={run}"])
    assert read_labels(run).identity == labels.identity
    assert passes == [LAYERS]


def other_weights(folder):
    weights = load_file(folder / WEIGHTS)
    weights["visual.proj"][0, 0] += 1e-3
    save_file(weights, folder / WEIGHTS)


def other_preparation(folder):
    config = {**CLIP, "preprocess_cfg": CLIP["preprocess_cfg"] | {"mean": [0.1, 0.1, 0.1]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("change", [other_weights, other_preparation])
def test_another_model_makes_the_labels_anew(run, asked, clip_folder, tmp_path, passes, change):
    copy = Path(shutil.copytree(clip_folder, tmp_path / "moved" / clip_folder.name))
    dissect.main(["explain", *asked, "test:0"])
    before = read_labels(run)
    dissect.main(["explain", *asked, f"--clip={copy}", "test:0"])
    assert (len(passes), read_labels(run).identity) == (1, before.identity)  # the same model elsewhere
    change(copy)
    dissect.main(["explain", *asked, f"--clip={copy}", "test:0"])
    assert passes[1:] == [["clip"]]
    assert differing(read_labels(run), before) == {"clip"}


@pytest.mark.parametrize(
    ("option", "keys", "shown"),
    [
        ("--templates=a {}", {"templates"}, []),
        ("--prior=0.5", {"prior"}, []),
        ("--similarity=rank_reorder", {"similarity", "prior"}, []),
        ("--probe=test", {"probe", "images"}, [["clip", LAYERS[1]]]),
        ("--readout=mean", {"readout"}, [[LAYERS[1]]]),
    ],
)
def test_another_way_of_asking_makes_the_labels_anew_and_only_what_it_needs(
    run, asked, passes, capsys, option, keys, shown
):
    dissect.main(["explain", *asked, "test:0", LAST])
    before = read_labels(run)
    _, said = explained(capsys, [*asked, option, "test:0", LAST])
    assert f"labelled anew: {run}/labels.parquet" in said
    assert passes[1:] == shown
    after = read_labels(run)
    assert differing(after, before) == keys
    assert not set(after.table["fingerprint"]) & set(before.table["fingerprint"])


@pytest.mark.parametrize("others", [[*WORDS, "fire"], WORDS[:-1], WORDS[::-1]])
def test_another_list_makes_the_labels_anew(run, asked, words, passes, capsys, others):
    dissect.main(["explain", *asked, "test:0"])
    before = read_labels(run)
    words.write_text("\n".join(others), encoding="utf-8")
    _, said = explained(capsys, [*asked, "test:0"])
    assert "labelled anew" in said
    assert len(passes) == 1  # no image has to be looked at again
    assert differing(read_labels(run), before) == {"concepts"}


def test_a_network_whose_weights_changed_is_shown_the_images_anew_and_labelled_as_whole_as_before(
    run, asked, passes
):
    dissect.main(["label", *asked])
    before = read_labels(run)
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")
    dissect.main(["explain", *asked, "test:0"])
    assert passes[1:] == [LAYERS]
    assert differing(read_labels(run), before) == {"weights"}
    assert read_labels(run).partial == []
    assert len(read_labels(run).table) == len(before.table)


# --- bad input -----------------------------------------------------------------------------------


def test_blanks_and_repeated_words_are_left_out_and_change_no_label(run, asked, words, passes, capsys):
    dissect.main(["label", *asked])
    before = read_labels(run)
    words.write_text("\n".join(["", *WORDS, "  ", " sea", "blue"]), encoding="utf-8")
    capsys.readouterr()
    dissect.main(["label", *asked])
    assert "left out 2 blank and 2 repeated of the concepts; 5 remain" in capsys.readouterr().err
    assert read_labels(run).identity == before.identity
    same_labels(read_labels(run), before)
    assert len(passes) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"blue\n\n", "words.txt holds 1 concepts; labels need at least two"),
        (b"blue\n blue\n", "words.txt holds 1 concepts; labels need at least two"),
        (b"", "words.txt holds 0 concepts; labels need at least two"),
        ("blé\nsea\n".encode("latin-1"), "words.txt is not text in UTF-8; save it as such"),
    ],
    ids=["one", "twice the same", "none", "encoding"],
)
@pytest.mark.parametrize("command", [["label"], ["explain", "test:0"]])
def test_a_bad_list_is_refused_and_nothing_written(run, asked, words, passes, command, content, sentence):
    words.write_bytes(content)
    assert sentence in refused(dissect.main, [*command, *asked])
    assert not passes
    written = [path for name in ("labels*", "exemplars*", "explanations") for path in run.glob(name)]
    assert not written


def test_a_list_without_a_model_and_a_matrix_with_one_are_refused(run, words, clip_folder, tmp_path):
    asked = ["label", f"--run={run}"]
    for concepts in (words, "shapes"):
        message = refused(dissect.main, [*asked, f"--concepts={concepts}"])
        assert "needs an open_clip model that looks for them: --clip ViT-B-32 --tag openai" in message
    for name in ("matrix.csv", "matrix.parquet", "matrix.npz"):
        message = refused(dissect.main, [*asked, f"--concepts={tmp_path / name}", f"--clip={clip_folder}"])
        assert f"{name} tells by itself what the images show; leave --clip away" in message
    message = refused(dissect.main, [*asked, "--concepts=nowhere.txt", f"--clip={clip_folder}"])
    assert "there is no word list nowhere.txt" in message


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--clip=ViT-B32"], "open_clip knows no model 'ViT-B32'"),
        (["--clip=ViT-B-32"], "ViT-B-32 needs a tag"),
        (["--clip=hf-hub:a/b"], "hf-hub:a/b cannot be fetched .*--clip FOLDER"),
        (["--tag=openai"], "holds its own weights; leave the tag 'openai' away"),
        (["--templates=a photo"], "the template 'a photo' needs exactly one {} for the concept"),
        (["--templates=[]"], "templates names no template"),
    ],
)
def test_a_model_or_template_that_cannot_be_is_one_sentence(asked, passes, options, sentence):
    assert re.search(sentence, refused(dissect.main, ["label", *asked, *options]))
    assert not passes


def test_the_prior_is_part_of_what_labels_depend_on(run, asked):
    dissect.main(["label", *asked])
    published, first = read_labels(run).table, read_labels(run).identity
    dissect.main(["label", *asked, "--prior=0.5"])
    weaker, second = read_labels(run).table, read_labels(run).identity
    assert (first["prior"], second["prior"]) == ("1", "0.5")
    both = published["score"].notna()
    assert both.any()
    assert not np.allclose(published["score"][both], weaker["score"][both])


def test_a_prior_out_of_range_is_refused(run):
    assert "prior lies in [0, 1]" in refused(dissect.main, ["label", f"--run={run}", "--prior=1.5"])
    assert "prior lies in [0, 1]" in refused(
        dissect.main, ["explain", f"--run={run}", "test:0", "--prior=-1"]
    )


def test_labels_of_other_layers_that_are_replaced_are_told(run, asked, capsys):
    dissect.main(["label", *asked])
    dissect.main(["label", *asked, "--layers=blocks.1*", "--prior=0.5"])
    assert "replaced the labels of blocks.0.mlp.act too" in capsys.readouterr().err
