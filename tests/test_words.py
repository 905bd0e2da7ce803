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

import dissect
from lwta.dissect.concepts import read_words
from lwta.dissect.labels import read_labels
from lwta.errors import InputError
from models.run import load_run
from models.shapes import CONCEPTS
from tests.conftest import CLIP, SPLITS, TinyRun, refused

WORDS = ["blue", "leaf", "a red square", "sea", "blé"]
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
    """Every pass over a probe set, by the layers it was made for."""
    made, collect = [], dissect.collect

    def counted(model, batches, sites, *args):
        made.append(list(sites))
        return collect(model, batches, sites, *args)

    monkeypatch.setattr(dissect, "collect", counted)
    return made


def same_labels(one, other):
    columns = ["layer", "unit", "label", "label_2", "alive", "wins", "negative", "reason"]
    pd.testing.assert_frame_equal(one[columns], other[columns])
    for score in ("score", "score_2"):
        np.testing.assert_allclose(one[score], other[score], rtol=1e-4)
    assert [list(row) for row in one["exemplars"]] == [list(row) for row in other["exemplars"]]


# --- the labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("templates", [["{}"], ["a photo of a {}.", "{} on a wall"]])
def test_labels_are_those_of_a_matrix_that_open_clip_made_by_hand(
    run, asked, clip_folder, tmp_path, templates
):
    dissect.main(["label", *asked, f"--templates={json.dumps(templates)}"])
    found, identity = read_labels(run)
    assert set(found["label"].dropna()) <= set(WORDS)
    assert found["label"].nunique() > 1
    assert identity.keys() == {"weights", "probe", "readout", "prior", "concepts", "clip", "templates"}
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
    same_labels(found, read_labels(run)[0])


def test_neither_batches_nor_loader_processes_change_a_label(run, asked):
    dissect.main(["label", *asked])
    found = read_labels(run)[0]
    dissect.main(["label", *asked, "--batch_size=7", "--num_workers=2"])
    same_labels(found, read_labels(run)[0])


def test_the_images_go_to_loader_processes_that_start_anew_as_on_a_mac(asked, monkeypatch):
    loaded, loader = [], dissect.DataLoader
    monkeypatch.setattr(
        dissect,
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
    assert set(read_labels(run)[0]["label"].dropna()) <= {"blue", "green", "red"}
    assert "clip" in read_labels(run)[1]
    dissect.main(["label", f"--run={run}", "--concepts=shapes", "--clip=shapes", "--probe=train"])
    labels, identity = read_labels(run)
    assert set(labels["label"].dropna()) <= set(CONCEPTS)
    assert identity["clip"].startswith("local-dir:shapes_clip ")


def test_the_images_kept_beside_a_label_are_those_of_its_hardest_wins(run, asked):
    dissect.main(["label", *asked])
    labels = read_labels(run)[0]
    opened = load_run(run)
    images = opened.data.dataset("train")
    read = {}
    for name in ("blocks.0.mlp.act", "blocks.1.mlp.act"):
        opened.model.backbone.get_submodule(name).register_forward_hook(
            lambda module, inputs, out, name=name: read.update({name: out[:, 0]})
        )
    transform = opened.data.eval_transform()
    with torch.no_grad():
        opened.model.backbone(torch.stack([transform(image) for image, _ in images]))
    for row in labels.to_dict("records"):
        values = read[row["layer"]][:, row["unit"]] * (-1 if row["negative"] else 1)
        wanted = [i for i in values.argsort(descending=True).tolist() if values[i] > 0]
        assert len(row["exemplars"]) <= 9
        torch.testing.assert_close(values[row["exemplars"]], values[wanted[: len(row["exemplars"])]])
        assert len(row["exemplars"]) == min(9, len(wanted))
        assert len(set(row["exemplars"])) == len(row["exemplars"])


def test_the_csv_tells_the_same_as_the_parquet_file_also_where_layers_were_labelled_apart(run, asked):
    dissect.main(["label", *asked])
    dissect.main(["label", *asked, "--layers=blocks.0*"])
    labels, again = read_labels(run)[0], pd.read_csv(run / "labels.csv")
    assert [json.loads(cell) for cell in again["exemplars"]] == [list(row) for row in labels["exemplars"]]
    assert len(again) == 2 * 96


def test_a_broken_image_counts_nowhere(run, asked, image_folder, tmp_path, capsys):
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    broken = sorted((data / "train" / "green").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:40])
    dissect.main(["label", *asked, f"--root={data}"])
    assert f"left out 1 images that do not decode: green/{broken.name}" in capsys.readouterr().err
    labels = read_labels(run)[0]
    assert (
        labels["wins"].groupby([labels["layer"], labels["unit"] // 24]).sum() == SPLITS["train"] - 1
    ).all()
    place = SPLITS["train"] // 3 + 2
    assert not [row for row in labels["exemplars"] if place in row]


# --- explain labels first ------------------------------------------------------------------------


def test_explain_labels_first_and_only_once(run, asked, passes, capsys):
    dissect.main(["explain", *asked, "test:0", "--json"])
    first = json.loads(capsys.readouterr().out)
    assert passes == [["blocks.0.mlp.act", "blocks.1.mlp.act"]]  # all: no layer is left without labels
    labels = read_labels(run)[0].query("layer == 'blocks.1.mlp.act'").set_index("unit")["label"]
    for unit in first[0]["layers"][0]["fired"]:
        assert unit["label"] == (labels[unit["unit"]] or None)
    assert {unit["label"] for unit in first[0]["layers"][0]["fired"]} & set(WORDS)
    dissect.main(["explain", *asked, "test:0", "--json"])
    assert json.loads(capsys.readouterr().out) == first
    assert len(passes) == 1
    dissect.main(["explain", *asked, "test:0", "--layers=blocks.*"])
    dissect.main(["explain", *asked, "test:0", "--layers=blocks.0*"])
    assert len(passes) == 1
    dissect.main(["explain", *asked, "test:0", "--prior=0.5"])
    assert len(passes) == 2
    assert set(read_labels(run)[0]["layer"]) == {"blocks.0.mlp.act", "blocks.1.mlp.act"}


def test_explain_takes_the_labels_that_label_made(run, asked, passes):
    dissect.main(["label", *asked])
    dissect.main(["explain", *asked, "test:0"])
    assert len(passes) == 1
    dissect.main(["explain", f"--run={run}", "test:0"])  # nothing asked for: whatever labels there are
    assert len(passes) == 1


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
    before = read_labels(run)[1]
    dissect.main(["explain", *asked, f"--clip={copy}", "test:0"])
    assert (len(passes), read_labels(run)[1]) == (1, before)  # the same model elsewhere
    change(copy)
    dissect.main(["explain", *asked, f"--clip={copy}", "test:0"])
    assert len(passes) == 2
    assert {k for k, v in read_labels(run)[1].items() if v != before[k]} == {"clip"}


@pytest.mark.parametrize(
    ("option", "key"),
    [("--templates=a {}", "templates"), ("--probe=test", "probe"), ("--readout=mean", "readout")],
)
def test_another_way_of_asking_makes_the_labels_anew(run, asked, passes, option, key):
    dissect.main(["explain", *asked, "test:0"])
    before = read_labels(run)[1]
    dissect.main(["explain", *asked, option, "test:0"])
    assert len(passes) == 2
    assert {k for k, v in read_labels(run)[1].items() if v != before[k]} == {key}


@pytest.mark.parametrize("others", [[*WORDS, "fire"], WORDS[:-1], WORDS[::-1]])
def test_another_list_makes_the_labels_anew(run, asked, words, passes, others):
    dissect.main(["explain", *asked, "test:0"])
    before = read_labels(run)[1]
    words.write_text("\n".join(others), encoding="utf-8")
    dissect.main(["explain", *asked, "test:0"])
    assert len(passes) == 2
    assert {k for k, v in read_labels(run)[1].items() if v != before[k]} == {"concepts"}


# --- bad input -----------------------------------------------------------------------------------


def test_a_list_is_read_as_it_stands(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff blue \r\na dog, running\r\nblé\r\n".encode())
    assert read_words(path) == ["blue", "a dog, running", "blé"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"blue\n\nred\n", "concept 2 of .*words.txt is blank; name it or remove it"),
        (b"blue\n  \nred\n", "concept 2 of .*words.txt is blank"),
        (b"blue\nred\n blue\n", "words.txt names the concept 'blue' twice; keep one"),
        (b"blue\n", "words.txt holds 1 concepts; labels need at least two"),
        (b"", "words.txt holds 0 concepts; labels need at least two"),
        ("blé\nsea\n".encode("latin-1"), "words.txt is not text in UTF-8; save it as such"),
    ],
    ids=["blank", "spaces", "duplicate", "one", "none", "encoding"],
)
@pytest.mark.parametrize("command", [["label"], ["explain", "test:0"]])
def test_a_bad_list_is_refused_and_nothing_written(run, asked, words, passes, command, content, sentence):
    words.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_words(words)
    assert re.search(sentence, refused(dissect.main, [*command, *asked]))
    assert not passes
    assert not [path for name in ("labels*", "explanations") for path in run.glob(name)]


def test_a_list_without_a_model_and_a_matrix_with_one_are_refused(run, words, clip_folder, tmp_path):
    asked = ["label", f"--run={run}"]
    for concepts in (words, "shapes"):
        message = refused(dissect.main, [*asked, f"--concepts={concepts}"])
        assert "needs an open_clip model that looks for them: --clip ViT-B-32 --tag openai" in message
    for name in ("matrix.csv", "matrix.parquet", "matrix.npz"):
        message = refused(dissect.main, [*asked, f"--concepts={tmp_path / name}", f"--clip={clip_folder}"])
        assert f"{name} tells by itself what the images show; leave --clip away" in message
    message = refused(dissect.main, [*asked, "--concepts=nowhere.txt", f"--clip={clip_folder}"])
    assert "there is no concept list nowhere.txt" in message


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
    published, identity = read_labels(run)
    dissect.main(["label", *asked, "--prior=0.5"])
    weaker, other = read_labels(run)
    assert (identity["prior"], other["prior"]) == ("1", "0.5")
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
