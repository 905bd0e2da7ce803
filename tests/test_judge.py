"""The embedded world's own concepts and CLIP, and the device."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch

import dissect
from lwta.dissect.labels import read_labels
from models.shapes import CONCEPTS, FACTORS, Shapes
from models.shapes_clip import FOLDER
from models.shapes_clip.train import rendered, zero_shot
from tests.conftest import refused


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
    message = refused(dissect.main, ["evaluate", f"--run={run}", "--probe=test"])
    assert "only some units of blocks.0.mlp.act are labelled, those that explain came upon" in message
    assert not (run / "evaluation.json").exists()
    dissect.main(["label", f"--run={run}"])
    dissect.main(["evaluate", f"--run={run}", "--probe=test", "--resamples=0"])
    assert (run / "evaluation.json").exists()


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
