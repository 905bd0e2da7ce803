"""export: files of torch.export and ONNX compute what the network does, for any number of images."""

import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import dissect
from lwta import LWTA
from lwta.errors import InputError
from lwta.layers import competitions
from models.backbone import create_backbone
from models.export import export_network
from tests.conftest import refused
from tests.toy import network, network_args, toys

__all__ = ["toys"]  # fixture


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def computed(path, images):
    """Logits by the file, with what a user would read it with."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"competitors": 24, "backbone_args": {"img_size": 32, "depth": 2}}),
        ("resnet26", {"competitors": 16, "placement": "inner"}),
    ],
)
def test_a_file_computes_what_the_network_does(tmp_path, suffix, name, args):
    torch.manual_seed(0)
    model, _ = create_backbone(name, 10, **args)
    for scale, competition in enumerate(competitions(model).values(), start=1):
        competition.spread.fill_(0.1 * scale)
        competition.beta, competition.noise = 1.3, 0.5
    path, images = tmp_path / f"net{suffix}", randn(3, 3, 32, 32)
    apart = export_network(model.eval(), images, path, {"names": ["a", "ü"]})
    assert 0 <= apart < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for count in (1, 2, 7):
        others = randn(count, 3, 32, 32, seed=count)
        with torch.no_grad():
            torch.testing.assert_close(computed(path, others), model(others), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("compiler", "toys")
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_command_writes_the_file_and_says_how_near_it_comes(kind, capsys):
    dissect.main(["export", *network_args("vit"), "--out=out", f"--kind={kind}"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == "2 competing layers, each block's winner the argmax"
    assert second.startswith("on 4 images of noise its logits are within ")
    assert second.endswith(f"wrote out/network.{kind}")
    net, images = network("vit"), randn(5, 3, 32, 32, seed=1)
    with torch.no_grad():
        expected = net.model(images)
    torch.testing.assert_close(computed(Path(f"out/network.{kind}"), images), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("compiler", "toys")
def test_a_file_says_what_it_takes_and_what_it_is():
    dissect.main(["export", *network_args("vit"), "--out=out"])
    dissect.main(["export", *network_args("vit"), "--out=out", "--kind=pt2"])
    of_onnx = {entry.key: entry.value for entry in onnx.load("out/network.onnx").metadata_props}
    of_pt2 = dict.fromkeys(of_onnx, "")
    torch.export.load("out/network.pt2", extra_files=of_pt2)
    notes = {name: json.loads(text) for name, text in of_onnx.items()}
    assert notes["network"] == "toys:vit"
    assert notes["image_size"] == [32, 32]
    assert notes["mean"] == list(network("vit").mean)
    assert notes["std"] == list(network("vit").std)
    assert notes["class_names"] is None
    assert notes["competitors"] == {"blocks.0.mlp.act": 24, "blocks.1.mlp.act": 24}
    assert notes["identity"]["weights"] == network("vit").weights
    assert of_pt2 == of_onnx


class Depends(nn.Module):
    """Takes another way for other images, which no file can."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.usefixtures("compiler")
def test_what_cannot_be_exported_is_refused_and_leaves_no_file(tmp_path, monkeypatch):
    images = randn(2, 3, 4, 4)
    with pytest.raises(InputError, match="neither .onnx nor .pt2"):
        export_network(nn.Flatten().eval(), images, tmp_path / "net.pt", {})
    for suffix in (".onnx", ".pt2"):
        with pytest.raises(InputError, match=f"cannot be exported to {suffix}"):
            export_network(Depends().eval(), images, tmp_path / f"net{suffix}", {})
    with pytest.raises(InputError, match="call model.eval"):
        export_network(nn.Flatten(), images, tmp_path / "net.onnx", {})
    (tmp_path / "net.onnx").write_text("of before")
    with monkeypatch.context() as patch:
        patch.setattr("models.export._onnx", lambda program, images, path, notes: images.flatten(1) + 1e-3)
        with pytest.raises(InputError, match=r"logits are 1.0e-03 from the network's, more than 0.0001"):
            export_network(nn.Flatten().eval(), images, tmp_path / "net.onnx", {})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnxscript is not installed; pip install 'lwta\[export\]'"):
        export_network(LWTA(2, -1).eval(), images, tmp_path / "net.onnx", {})
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "of before"


@pytest.mark.usefixtures("toys")
def test_winners_only_is_no_way_of_an_exported_file():
    said = refused(dissect.main, ["export", *network_args("vit"), "--out=out", "--winners_only=true"])
    assert said == "error: winners_only computes as no exported file does; leave it away"
