"""Every shipped config loads, builds its model and takes one step, on stand-in data."""

import copy
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

import dissect
import train
from commands.options import LabelOptions
from lwta import LWTA, TopK
from lwta.dissect.activations import Readout
from lwta.dissect.labelers.clip import find_similarity
from lwta.layers import competitions
from models.backbone import create_backbone
from models.classifier import Classifier
from models.swap import swap

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "train").glob("*.yaml"))


@pytest.mark.parametrize("name", ["cifar10_vit_lwta24", "cifar10_resnet14_lwta24"])
def test_what_a_config_leaves_out_is_the_recipe(name):
    said = yaml.safe_load((CONFIGS[0].parent / f"{name}.yaml").read_text())["model"]
    keys = {"competitors", "normalize", "noise", "tau", "balance_weight"}
    assert keys <= said.keys()
    silent = Classifier(num_classes=10, **{k: v for k, v in said.items() if k not in {*keys, "placement"}})
    assert {k: silent.hparams[k] for k in keys} == {k: said[k] for k in keys}
    assert silent.hparams["placement"] == said.get("placement", "last")
    # A layer made by hand competes alike.
    built = competitions(silent.backbone).values()
    assert built
    assert [repr(one) for one in built] == [repr(LWTA(24, one.dim).competition) for one in built]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_one_step(path, parquet_folder, tmp_path, monkeypatch):
    seen = []
    step = Classifier.training_step

    def watched(self, *args):
        seen.append((self, copy.deepcopy(self.backbone.state_dict())))
        return step(self, *args)

    monkeypatch.setattr(Classifier, "training_step", watched)
    expected = yaml.safe_load(path.read_text())["model"]
    trained = stand_in_weights(expected, tmp_path) if "weights" in expected else "null"
    shallow = ["--model.backbone_args={depth: 2}"] if expected.get("pretrained") else []
    train.main(
        [
            "fit",
            f"--config={path}",
            "--data.name=hfds",
            "--data.dataset_args={input_key: img, target_key: label}",
            f"--data.root={parquet_folder}",
            f"--run={tmp_path / 'run'}",
            f"--model.weights={trained}",
            "--model.pretrained=false",
            "--data.train_split=train",
            "--data.val_split=test",
            f"--data.batch_size={8 if path.stem.startswith(('cifar10', 'quickstart')) else 2}",
            "--data.num_workers=0",
            "--trainer.precision=32",
            "--trainer.fast_dev_run=1",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            *shallow,
        ]
    )
    ((model, before),) = seen
    if "weights" in expected:
        assert all(torch.equal(before[name], value) for name, value in load_file(trained).items())
    modules = [m for m in model.backbone.modules() if isinstance(m, (LWTA, TopK))]
    if expected["competitors"] is None:
        assert modules == []
    else:
        assert len(modules) == len(model.report.chosen) > 0
        assert {type(m).__name__.lower() for m in modules} == {expected.get("activation", "lwta")}
    assert any(not torch.equal(before[name], p) for name, p in model.backbone.named_parameters())


def stand_in_weights(model, folder) -> Path:
    """Those of a dense network of the same architecture, as a file."""
    torch.manual_seed(1)
    backbone, _ = create_backbone(
        model["backbone"], 3, backbone_args=model["backbone_args"], kind="lwta", competitors=None
    )
    save_file(backbone.state_dict(), folder / "dense.safetensors")
    return folder / "dense.safetensors"


@pytest.mark.parametrize(
    ("name", "competitors"),
    [
        ("imagenet_deit_tiny_published", (2, 8, 16, 24)),
        ("imagenet_deit_small_published", (2, 12)),
        ("places365_resnet18_published", (2, 4, 8)),
    ],
)
def test_the_published_networks_are_those_of_the_paper(name, competitors):
    text = (CONFIGS[0].parent / f"{name}.yaml").read_text()
    assert f"U: {', '.join(map(str, competitors))}, by --model.competitors U" in text
    said = yaml.safe_load(text)["model"]
    for u in competitors:
        with torch.device("meta"):
            model = timm.create_model(said["backbone"])
        model = model.to_empty(device="cpu")
        found = swap(model, competitors=u, placement=said.get("placement", "last")).swapped
        assert len(found) == (17 if "resnet18" in name else 12)
        assert {site.competitors for site in found} == {u}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_a_header_and_names_its_own_run(path):
    text = path.read_text()
    for part in ("# Command:", f"configs/train/{path.name}", "# Data:", "# Result:"):
        assert part in text
    assert yaml.safe_load(text)["run"] == f"runs/{path.stem}"


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[1] / "configs" / "dissect").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_a_dissection_config_asks_for_what_there_is(path):
    parsed = dissect._parser().parse_args(["label", f"--config={path}"])["label"].as_dict()
    asked = LabelOptions(**{name: parsed[name] for name in LabelOptions.names()})
    written = yaml.safe_load(path.read_text())
    assert {name: getattr(asked, name) for name in written} == written
    find_similarity(asked.similarity, asked.prior)
    Readout(asked.readout)
    assert asked.tag in open_clip.list_pretrained_tags_by_model(asked.clip)
    assert f"--config configs/dissect/{path.name}" in path.read_text()


def test_there_are_configs():
    assert len(CONFIGS) >= 6
