"""Labels judged against the truth from the command line, and the embedded world's own concepts and CLIP."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch

import commands.evaluate
import dissect
from lwta.dissect.evaluate import score_labels, true_concepts
from lwta.dissect.labels import read_labels, write_labels
from models.run import load_run
from models.shapes import CONCEPTS, FACTORS, Shapes
from models.shapes_clip import FOLDER
from models.shapes_clip.train import rendered, zero_shot
from tests.conftest import TinyRun, refused


@pytest.fixture(scope="module")
def labelled(shapes_run, tmp_path_factory):
    """A run on the embedded world, labelled on its validation images by default."""
    run = Path(shutil.copytree(shapes_run, tmp_path_factory.mktemp("runs") / "labelled"))
    dissect.main(["label", f"--run={run}"])
    return run


@pytest.fixture
def run(labelled, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(labelled, tmp_path / "run"))


# --- labels of the embedded world ----------------------------------------------------------------


def test_the_embedded_world_is_labelled_by_its_own_words_and_clip(labelled):
    labels, _, identity, *_ = read_labels(labelled)
    assert set(labels["label"].dropna()) <= set(CONCEPTS)
    assert labels["label"].notna().any()
    assert identity["probe"] == "validate"
    assert identity["clip"].startswith("local-dir:shapes_clip ")
    assert identity["templates"] == "{}"


def test_its_classes_are_concepts_too(run):
    dissect.main(["label", f"--run={run}", "--concepts=classes"])
    labels, _, identity, *_ = read_labels(run)
    assert set(labels["label"].dropna()) <= set(FACTORS["shape"])
    assert "clip" not in identity


def test_explain_labels_on_demand_by_them_and_such_labels_are_not_judged_before_all_are_there(
    shapes_run, tmp_path, labelled, capsys
):
    run = Path(shutil.copytree(shapes_run, tmp_path / "run"))
    dissect.main(["explain", f"--run={run}", "test:0", "--json"])
    (layer,) = json.loads(capsys.readouterr().out)[0]["layers"]
    fired = {unit["unit"] for unit in layer["fired"]}
    rivals = {rival["unit"] for unit in layer["fired"] for rival in unit["rivals"]}
    some, whole = read_labels(run), read_labels(labelled)
    assert some.identity == whole.identity
    assert some.options == whole.options == {}
    assert sorted(fired | rivals) == some.table["unit"].tolist()
    rows = some.table.merge(whole.table, on=["layer", "unit"], suffixes=("", "_whole"))
    assert (len(rows), len(fired), len(rivals)) == (12, 4, 8)
    for name in ("label", "label_2", "reason", "wins", "fingerprint"):
        assert rows[name].equals(rows[f"{name}_whole"].rename(name)), name
    message = refused(dissect.main, ["evaluate", f"--run={run}", "--split=test"])
    assert "only some units of blocks.0.mlp.act are labelled, those that explain came upon" in message
    assert not (run / "evaluation.json").exists()
    dissect.main(["label", f"--run={run}"])
    dissect.main(["evaluate", f"--run={run}", "--split=test"])
    assert (run / "evaluation.json").exists()


# --- evaluate ------------------------------------------------------------------------------------


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


def judged_by_hand(run, split, **readout):
    values, presence = values_by_hand(run, split, **readout), Shapes(split).presence()
    return score_labels(read_labels(run).table, values, CONCEPTS, presence)


@pytest.mark.parametrize("split", ["test", "validation[100:180]"])
def test_labels_are_judged_on_the_images_of_the_split(run, capsys, split):
    dissect.main(["evaluate", f"--run={run}", f"--split={split}", "--batch_size=7"])
    score = judged_by_hand(run, "test[:24]" if split == "test" else split)
    assert score.selective > 0
    count = {"test": 24}.get(split, 80)
    said = capsys.readouterr().out
    assert said == f"{score}; on {count} images of the split {split}; wrote {run / 'evaluation.json'}\n"
    found = json.loads((run / "evaluation.json").read_text())
    identity = found.pop("labels")
    assert found.pop("split") == split
    assert found == pytest.approx(score._asdict())
    assert identity == read_labels(run).identity


def test_labels_are_judged_at_their_own_readout_and_layers(run):
    dissect.main(["label", f"--run={run}", "--readout=mean", "--layers=blocks.0*"])
    dissect.main(["evaluate", f"--run={run}", "--split=validation[100:180]", "--num_workers=2"])
    found = json.loads((run / "evaluation.json").read_text())
    score = judged_by_hand(run, "validation[100:180]", readout=lambda out: out[:, 1:].mean(1))
    assert found["labels"]["readout"] == "mean"
    assert [found[name] for name in score._fields] == pytest.approx(list(score))


def test_true_labels_are_found_true_and_false_ones_false(run, capsys):
    labels = read_labels(run)
    read = values_by_hand(run, "validation[100:180]")["blocks.0.mlp.act"]
    sign = 1 - 2 * torch.tensor(labels.table["negative"].tolist()).float()
    truth = true_concepts(read * sign, Shapes("validation[100:180]").presence())
    told = [CONCEPTS[row.int().argmax()] if row.any() else "red" for row in truth]
    for text, share in ((told, "100.0 %"), ([None] * len(told), "0.0 %")):
        write_labels(run, labels._replace(table=labels.table.assign(label=text)))
        dissect.main(["evaluate", f"--run={run}", "--split=validation[100:180]"])
        said = capsys.readouterr().out
        assert (
            f"{int(truth.any(1).sum())} selective units, {int((~truth.any(1)).sum())} not selective" in said
        )
        assert f"; {share} of the selective ones carry a true label" in said


@pytest.mark.parametrize(
    "split", ["validate", "validation", "validation[:40]", "validation[39:60]", "validation[10:20]"]
)
def test_no_label_is_judged_on_an_image_that_it_was_made_from(run, split):
    message = refused(dissect.main, ["evaluate", f"--run={run}", f"--split={split}"])
    assert "the labels were made from the split validate, which shares images with" in message
    assert not (run / "evaluation.json").exists()


def test_without_a_split_images_are_judged_that_no_label_was_made_from(run, monkeypatch, capsys):
    monkeypatch.setattr(commands.evaluate, "HELD_OUT", "validation[10000:10030]")
    dissect.main(["evaluate", f"--run={run}"])
    assert "on 30 images of the split validation[10000:10030]" in capsys.readouterr().out
    dissect.main(["label", f"--run={run}", "--probe=validation[10020:10050]"])
    assert "which shares images with validation[10000:10030]" in refused(
        dissect.main, ["evaluate", f"--run={run}"]
    )


def test_data_whose_concepts_are_not_known_and_runs_without_labels_are_refused(
    image_folder, shapes_run, tmp_path
):
    colours = TinyRun(image_folder, tmp_path / "colours")
    colours.fit(trainer__max_epochs=1)
    for folder in (colours.folder, shapes_run):
        message = refused(dissect.main, ["evaluate", f"--run={folder}", "--split=test"])
        assert f"{folder} has no labels to judge; make them with dissect.py label --run {folder}" in message
    dissect.main(["label", f"--run={colours.folder}"])
    assert "only the embedded world (data.name shapes) knows which concepts" in refused(
        dissect.main, ["evaluate", f"--run={colours.folder}", "--split=test"]
    )
    assert not (colours.folder / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split=holdout"], "shapes has no split 'holdout'"),
        (["--batch_size=0"], "batch_size is at least 1"),
        (["--num_workers=-1"], "num_workers at least 0"),
    ],
)
def test_bad_input_is_one_sentence(labelled, options, sentence):
    assert sentence in refused(dissect.main, ["evaluate", f"--run={labelled}", *options])


def test_labels_of_other_weights_are_not_judged(run):
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    torch.save(checkpoint | {"global_step": -1}, best)
    assert "was made from other weights" in refused(dissect.main, ["evaluate", f"--run={run}"])


# --- the device ----------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["label", "explain test:0", "evaluate", "report", "compare"])
def test_a_gpu_that_is_not_there_is_one_sentence(labelled, command):
    name, *images = command.split()
    args = [str(labelled)] if name == "compare" else [*images, f"--run={labelled}"]
    message = refused(dissect.main, [name, *args, "--device=cuda"])
    assert message.startswith("error: the device 'cuda' is not there (")
    assert message.endswith("; use --device cpu or auto")


@pytest.mark.parametrize("device", ["tpu", "cuda:-1", "gpu 1", ""])
def test_a_device_that_is_none_is_one_sentence(labelled, device):
    message = refused(dissect.main, ["label", f"--run={labelled}", f"--device={device}"])
    assert f"the device {device!r} is not there (" in message


# --- the CLIP that is shipped --------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    """The model and tokenizer, by open_clip's own calls."""
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{FOLDER}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{FOLDER}")


def test_the_shipped_clip_is_small_and_open_clip_loads_it(shipped):
    assert (FOLDER / "open_clip_model.safetensors").stat().st_size <= 5_000_000
    model, transform, tokenizer = shipped
    pixels = transform(Shapes("test[:1]")[0][0])[None]
    with torch.no_grad():
        image = model.encode_image(pixels, normalize=True)
        words = model.encode_text(tokenizer(CONCEPTS), normalize=True)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(1))
    assert len(words.unique(dim=0)) == len(CONCEPTS)


@pytest.mark.parametrize("split", ["validation[:300]", "test[:300]"])
def test_the_shipped_clip_knows_the_words_of_the_world(shipped, split):
    scores = zero_shot(shipped[0], shipped[2], *rendered(split))
    assert scores.keys() == FACTORS.keys()
    assert min(scores.values()) >= 0.9, scores
