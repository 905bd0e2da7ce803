"""push: a run in timm's format computes what the run does, wherever it is loaded from."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.models._hub
import torch
from safetensors.torch import load_file, save_file

import dissect
import train
from lwta.errors import InputError
from lwta.layers import competitions, sampled
from models.network import load_network
from models.run import load_run
from tests.conftest import COLOURS, TinyRun, coloured_image, refused

KINDS = {
    "stochastic": {"model__normalize": "true", "model__noise": 0.3, "model__tau": 0.7},
    "by fraction": {
        "model__active_fraction": 0.1,
        "model__competitors": "{'blocks.1.*': 4}",
        "model__sites": "['*.mlp.act']",
    },
    "topk": {"model__activation": "topk", "model__competitors": 8},
    "relu": {"model__activation": "relu", "model__competitors": "null"},
    "dense": {"model__competitors": "null"},
    "squashed": {  # an architecture that timm shows whole images, pressed into a square
        "model__backbone_args": (
            "{img_size: 16, patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2, "
            "pretrained_cfg_overlay: {crop_mode: squash}}"
        )
    },
}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, image_folder):
    """A run and its folder, of each kind made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp("pushed")
            run = TinyRun(image_folder, folder / "run")
            run.fit(trainer__max_epochs=1, data__crop_pct=0.8, data__interpolation="bilinear", **KINDS[kind])
            dissect.main(["push", f"--run={run.folder}", f"--to=local-dir:{folder / 'net'}"])
            made[kind] = run.folder, folder / "net"
        return made[kind]

    return make


def logits(model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """By argmax and of one sample."""
    with torch.no_grad():
        argmax = model(images)
        with sampled(model, 3):
            return [argmax, model(images)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_computes_what_the_run_does(pushed, kind):
    folder, net = pushed(kind)
    run, loaded = load_run(folder, device="cpu"), load_network(f"timm:local-dir:{net}")
    assert loaded.class_names == sorted(COLOURS)
    seen = coloured_image((200, 90, 40), np.random.default_rng(0), side=40).crop((0, 0, 40, 24))
    pixels = loaded.transform(seen)
    assert torch.equal(pixels, run.data.eval_transform()(seen))
    expected, found = logits(run.model.backbone, pixels[None]), logits(loaded.model, pixels[None])
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])
    assert torch.equal(found[0], found[1]) == (kind in ("topk", "relu", "dense"))
    config = json.loads((net / "config.json").read_text())
    assert config["architecture"] == ("" if kind == "dense" else "lwta_") + "vit_tiny_patch16_224"
    assert {"tag", "license", "origin_url"}.isdisjoint(config["pretrained_cfg"])
    kept = loaded.model.pretrained_cfg
    assert (kept["source"], kept.get("state_dict")) == ("local-dir", None)
    competing = [competitions(model) for model in (run.model.backbone, loaded.model)]
    assert str(competing[0]) == str(competing[1])


def test_what_is_loaded_is_fitted_as_timm_fits_it(pushed):
    _, net = pushed("stochastic")
    name, held = f"local-dir:{net}", load_file(net / "model.safetensors")
    other = timm.create_model(name, pretrained=True, num_classes=7, img_size=32).eval()
    assert other(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    own = other.state_dict()
    assert held.keys() == own.keys()
    differ = {
        key for key in held if own[key].shape != held[key].shape or not torch.equal(own[key], held[key])
    }
    assert differ == {"head.weight", "head.bias", "pos_embed"}
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=[0])
    (spread,) = [value for key, value in features.state_dict().items() if key.endswith("spread")]
    assert spread == held["blocks.0.mlp.act.competition.spread"] != 1
    untrained = timm.create_model(name)
    assert not torch.equal(untrained.state_dict()["head.weight"], held["head.weight"])
    assert untrained.pretrained_cfg["label_names"] == sorted(COLOURS)


def test_what_the_caller_says_of_u_comes_before_what_is_stored(pushed):
    for kind, said, found in (
        ("stochastic", {"competitors": 8}, [8, 8]),
        ("stochastic", {"active_fraction": 0.1}, [12, 12]),
        ("by fraction", {"competitors": 6}, [6, 6]),
        ("stochastic", {"kind": "relu"}, []),
    ):
        _, net = pushed(kind)
        model = timm.create_model(f"local-dir:{net}", **said)
        assert [layer.competitors for layer in competitions(model).values()] == found


def test_features_of_sites_by_name_are_loaded(pushed):
    _, net = pushed("by fraction")
    features = timm.create_model(f"local-dir:{net}", pretrained=True, features_only=True, out_indices=[0, 1])
    assert [layer.competitors for layer in competitions(features).values()] == [12, 4]
    shallow = timm.create_model(f"local-dir:{net}", pretrained=True, features_only=True, out_indices=[0])
    assert [layer.competitors for layer in competitions(shallow).values()] == [12]


def test_weights_of_either_kind_are_taken_from_a_file(pushed, tmp_path):
    _, net = pushed("stochastic")
    held = load_file(net / "model.safetensors")
    args = json.loads((net / "config.json").read_text())["model_args"]
    name, place = "lwta_vit_tiny_patch16_224", "blocks.0.mlp.act.competition.spread"
    for source in ({"file": str(net / "model.safetensors")}, {"state_dict": held}):
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **args)
        assert torch.equal(model.state_dict()[place], held[place])
        assert torch.equal(model.state_dict()["norm.weight"], held["norm.weight"])
    assert place in held  # what was given stays whole
    dense = {key: value for key, value in held.items() if "competition" not in key}
    save_file(dense, tmp_path / "dense.safetensors")
    model = timm.create_model(name, checkpoint_path=str(tmp_path / "dense.safetensors"), **args)
    assert torch.equal(model.state_dict()["norm.weight"], held["norm.weight"])


def test_a_sparse_network_is_no_backbone(pushed, tiny):
    _, net = pushed("stochastic")
    said = refused(train.main, tiny.args(model__backbone=f"local-dir:{net}"))
    assert said.endswith(", 'drop_path_rate': 0.1}, and a file of weights, if any, as model.pretrained")
    assert "name model.backbone vit_tiny_patch16_224 with backbone_args {'img_size': " in said
    tiny.fit(model__pretrained=net / "model.safetensors", model__competitors=8, trainer__max_epochs=1)


def test_a_licence_is_claimed_of_timms_own_weights_alone(pushed, tiny, tmp_path):
    _, net = pushed("stochastic")
    tiny.fit(model__pretrained=net / "model.safetensors", trainer__max_epochs=1)
    dissect.main(["push", f"--run={tiny.folder}", f"--to=local-dir:{tmp_path / 'own'}"])
    config = json.loads((tmp_path / "own" / "config.json").read_text())["pretrained_cfg"]
    assert {"tag", "license"}.isdisjoint(config)


def test_it_is_loaded_by_its_name_on_the_hub(pushed, tmp_path):
    _, net = pushed("stochastic")
    repository = tmp_path / "models--me--net"  # as the hub's library keeps what it has fetched
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(net, repository / "snapshots" / "abc")
    loaded = timm.create_model("hf-hub:me/net", pretrained=True, cache_dir=tmp_path).eval()
    expected = load_network(f"timm:local-dir:{net}").model
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for a, b in zip(logits(expected, images), logits(loaded, images), strict=True):
        assert torch.equal(a, b)


class Hub:
    """What timm asks of the hub's library, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.private = folder, None

    def __call__(self, **_):
        return self

    def create_repo(self, repo_id, private, exist_ok):
        self.private = private
        self.repo_id = repo_id
        return self

    def file_exists(self, **_):
        return False

    def upload_folder(self, folder_path, **_):
        shutil.copytree(folder_path, self.folder)


def test_what_reaches_the_hub_is_what_reaches_a_folder(pushed, tmp_path, monkeypatch):
    folder, net = pushed("stochastic")
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(timm.models._hub, "HfApi", hub)
    dissect.main(["push", f"--run={folder}", "--to=hf-hub:me/net", "--license=mit", "--private=true"])
    licensed = json.loads((hub.folder / "config.json").read_text())
    assert licensed["pretrained_cfg"].pop("license") == "mit"
    assert licensed == json.loads((net / "config.json").read_text())
    assert (hub.repo_id, hub.private) == ("me/net", True)
    assert {file.name for file in hub.folder.iterdir()} == {file.name for file in net.iterdir()}
    assert (hub.folder / "model.safetensors").read_bytes() == (net / "model.safetensors").read_bytes()
    assert "license: mit" in (hub.folder / "README.md").read_text()
    assert "timm.create_model('hf-hub:me/net', pretrained=True)" in (hub.folder / "README.md").read_text()


def test_the_card_says_what_the_network_is_and_stays(pushed, tmp_path, capsys):
    folder, net = pushed("by fraction")
    card = (net / "README.md").read_text()
    (score,) = [
        state["best_model_score"]
        for state in torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["callbacks"].values()
        if state.get("monitor") == "val/top1"
    ]
    for said in (
        "license: unknown",
        "**Architecture:** vit_tiny_patch16_224",
        "  - blocks.0.mlp.act: LWTA, 1 of 12 units fires",
        "  - blocks.1.mlp.act: LWTA, 1 of 4 units fires",
        f"validation data:** {score:.1%}",
    ):
        assert said in card, said
    again = Path(shutil.copytree(net, tmp_path / "net"))
    (again / "README.md").write_text(card.replace("vit_tiny", "other"))
    again.chmod(0o750)
    dissect.main(["push", f"--run={folder}", f"--to=local-dir:{again}"])
    assert (again / "README.md").read_text() == card.replace(str(net), str(again))
    assert again.stat().st_mode & 0o777 == 0o750
    (again / "README.md").write_text("mine")
    (again / "config.json").write_text("{}")
    capsys.readouterr()
    dissect.main(["push", f"--run={folder}", f"--to=local-dir:{again}"])
    to = f"local-dir:{again}"
    loaded = f"timm.create_model({to!r}, pretrained=True) loads it after `import models`"
    kept = "its README.md is kept as you wrote it and may tell of another network"
    assert capsys.readouterr().out == f"pushed to {to}; {loaded}; {kept}\n"
    assert (again / "README.md").read_text() == "mine"
    assert (again / "config.json").read_bytes() == (net / "config.json").read_bytes()


def test_a_pushed_network_is_labelled(pushed, image_folder, tmp_path, monkeypatch):
    _, net = pushed("stochastic")
    monkeypatch.chdir(tmp_path)
    dissect.main(
        [
            "label",
            f"--model=timm:local-dir:{net}",
            f"--probe={image_folder / 'test'}",
            "--out=out",
            "--clip=shapes",
            "--concepts=classes",
        ]
    )
    rows = (tmp_path / "out" / "labels.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 96


def test_what_cannot_be_pushed_is_refused(pushed, tmp_path):
    folder, _ = pushed("stochastic")
    (tmp_path / "file").write_text("")
    for to, said in (
        ("me/net", "'me/net' is no place to push to; give hf-hub:OWNER/NAME or local-dir:FOLDER"),
        ("local-dir:", "'local-dir:' is no place"),
        ("hf-hub:net", "'hf-hub:net' names no repository; give hf-hub:OWNER/NAME"),
        (f"local-dir:{tmp_path / 'file'}", "file cannot be written .*; name a folder"),
        (f"local-dir:{tmp_path / 'file' / 'sub'}", "sub cannot be written .NotADirectory.*; name a folder"),
        ("hf-hub:me/net", "hf-hub:me/net cannot be written .*or push to local-dir:FOLDER"),
    ):
        message = refused(dissect.main, ["push", f"--run={folder}", f"--to={to}"])
        assert re.search(said, message), message
    assert "is no run" in refused(dissect.main, ["push", f"--run={tmp_path}", f"--to=local-dir:{tmp_path}"])


def test_weights_of_other_competitions_are_refused(pushed, tmp_path):
    _, net = pushed("stochastic")
    with pytest.raises(
        InputError, match="hold a competition at blocks.0.mlp.act, where the network has none"
    ):
        timm.create_model(f"local-dir:{net}", pretrained=True, sites=["blocks.1.*"])
    other = Path(shutil.copytree(net, tmp_path / "net"))
    held = load_file(other / "model.safetensors")
    save_file(held | {"norm.weight": torch.ones(5)}, other / "model.safetensors")
    with pytest.raises(InputError, match="cannot build local-dir:.*size mismatch for norm.weight"):
        load_network(f"timm:local-dir:{other}")
