"""Sparse from trained weights: what fits is fitted as timm does, what does not is refused; U by stages."""

import re
from typing import ClassVar

import pytest
import timm
import torch
import yaml
from lightning.pytorch import Callback
from safetensors.torch import load_file, save_file

import train
from lwta.errors import InputError
from lwta.layers import LWTA, competitions
from models.backbone import create_backbone
from models.checkpoint import run_checkpoint
from models.classifier import Classifier
from models.schedule import Stages
from tests.conftest import refused
from tests.test_train import Stopped

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
NAME = "vit_tiny_patch16_224"


@pytest.fixture
def weights(tmp_path):
    """Those of a small dense ViT of 7 classes, as a file."""
    torch.manual_seed(0)
    save_file(timm.create_model(NAME, num_classes=7, **SMALL).state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("classes", [7, 3])
def test_weights_of_a_file_are_fitted_as_timm_fits_its_own(weights, classes):
    model, report = create_backbone(
        NAME, classes, pretrained=str(weights), backbone_args=SMALL | {"img_size": 32, "in_chans": 1}
    )
    assert len(report.swapped) == 2
    own, held = model.state_dict(), load_file(weights)
    differ = {name for name in held if not torch.equal(own[name], held[name])}
    heads = set() if classes == 7 else {"head.weight", "head.bias"}
    assert differ == {"pos_embed", "patch_embed.proj.weight", *heads}
    assert own["pos_embed"].shape == (1, 65, 24)
    torch.testing.assert_close(
        own["patch_embed.proj.weight"], held["patch_embed.proj.weight"].sum(1, keepdim=True)
    )
    assert "state_dict" not in {k for k, v in model.pretrained_cfg.items() if v is not None}


@pytest.mark.parametrize("classes", [7, 3])
def test_a_file_that_lacks_weights_is_refused_whatever_the_head(weights, classes):
    held = load_file(weights)
    del held["blocks.1.mlp.fc1.bias"]
    save_file(held, weights)
    with pytest.raises(
        InputError, match=r'do not fit vit_tiny.*Missing key.*"blocks.1.mlp.fc1.bias"'
    ) as error:
        create_backbone(NAME, classes, pretrained=str(weights), backbone_args=SMALL)
    assert "\n" not in str(error.value)


def test_weights_of_another_width_say_what_they_fit(tmp_path):
    args = {"img_size": 32, "depth": 1}
    for name in ("vit_small_patch16_224", "resnet10t"):
        model = timm.create_model(name, num_classes=7, **(args if name.startswith("vit") else {}))
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError) as error:
        create_backbone(
            NAME, 7, pretrained=str(tmp_path / "vit_small_patch16_224.safetensors"), backbone_args=args
        )
    assert re.search(r"do not fit vit_tiny_patch16_224 \(.*size mismatch", str(error.value))
    assert str(error.value).endswith("; they fit vit_small_patch16_224")
    with pytest.raises(InputError, match="; name the architecture they were trained in$"):
        create_backbone(NAME, 7, pretrained=str(tmp_path / "resnet10t.safetensors"), backbone_args=args)


def test_a_file_of_weights_is_needed_only_once(tiny, weights, tmp_path):
    # With so small a step the weights after training are those before it.
    still = {"model__lr": 1e-12, "model__weight_decay": 0.0}
    tiny.fit(model__pretrained=weights, trainer__max_epochs=1, **still)
    found, held = (
        Classifier.from_checkpoint(run_checkpoint(tiny.folder)).backbone.state_dict(),
        load_file(weights),
    )
    kept = held.keys() - {"head.weight", "head.bias"}
    assert all(torch.allclose(found[name], held[name], atol=1e-6) for name in kept)
    weights.rename(tmp_path / "gone")
    config, last = tiny.folder / "config.yaml", tiny.folder / "checkpoints" / "last.ckpt"
    train.main(["fit", f"--config={config}", f"--ckpt_path={last}", "--trainer.max_epochs=2"])
    train.main(["test", f"--config={config}"])
    assert yaml.safe_load(config.read_text())["model"]["pretrained"] == str(weights)
    assert Classifier.from_checkpoint(last).hparams["pretrained"] == str(weights)
    message = refused(train.main, ["fit", f"--config={config}", f"--run={tmp_path / 'other'}"])
    assert f"there is no file of weights {weights}" in message


def test_what_does_not_fit_a_run_says_what_does(tiny, tmp_path):
    tiny.fit(trainer__max_epochs=1)
    config, last = tiny.folder / "config.yaml", tiny.folder / "checkpoints" / "last.ckpt"
    said = refused(train.main, ["fit", f"--config={config}", f"--ckpt_path={last}", "--model.competitors=8"])
    assert said == (
        f"error: checkpoint {last} has model.competitors=24 and the config 8; use the config of its run, or "
        f"start anew from its weights by --model.weights {last}"
    )
    saved = torch.load(last, weights_only=True)
    del saved["hyper_parameters"]["active_fraction"]  # as before there was the field
    torch.save(saved, last)
    older = ["fit", f"--config={config}", f"--ckpt_path={last}", "--model.active_fraction=0.25"]
    assert "has model.active_fraction=None and the config 0.25" in refused(train.main, older)
    tiny.fit(run=tmp_path / "anew", model__competitors=8, model__weights=last, trainer__max_epochs=1)
    wider = "{img_size: 16, patch_size: 4, embed_dim: 48, depth: 2, num_heads: 2}"
    other = {"run": tmp_path / "other", "model__weights": tiny.folder, "trainer__max_epochs": 1}
    said = refused(train.main, tiny.args(**other, model__backbone_args=wider))
    assert "24 there and" in said
    assert f"; they are of model.backbone {NAME} with backbone_args {{'img_size': 16" in said
    foreign = tmp_path / "foreign.ckpt"
    torch.save(
        {"state_dict": timm.create_model(NAME, num_classes=3, **SMALL | {"depth": 1}).state_dict()}, foreign
    )
    said = refused(train.main, tiny.args(**other | {"model__weights": foreign}))
    assert re.search("12 missing .*; set model.backbone to the network they were trained in$", said), said
    said = refused(train.main, tiny.args(run=tmp_path / "other", model__pretrained=tiny.folder))
    assert said == f"error: there is no file of weights {tiny.folder} but a folder, name the file in it"
    said = refused(train.main, tiny.args(**other, model__backbone=f"lwta_{NAME}"))
    assert said.startswith(
        f"error: lwta_{NAME} is sparse already, and here its config says how units compete; name "
        f"model.backbone {NAME} with backbone_args {{'img_size': 16, "
    )


def test_a_dense_run_starts_from_a_sparse_one(tiny, tmp_path):
    tiny.fit(model__normalize="true", trainer__max_epochs=1)
    dense = {"run": tmp_path / "dense", "model__competitors": "null", "model__weights": tiny.folder}
    tiny.fit(**dense, trainer__max_epochs=1)


def test_weights_that_cannot_be_fetched_say_how_else(tiny):
    said = refused(train.main, tiny.args(model__pretrained="true"))
    assert said.startswith(f"error: the weights of {NAME} cannot be fetched (")
    assert said.endswith("); download them and set model.pretrained FILE")


def test_weights_of_other_classes_are_fitted_by_pretrained(tiny, weights, tmp_path):
    other = {"run": tmp_path / "other", "trainer__max_epochs": 1}
    said = refused(train.main, tiny.args(**other, model__weights=weights))
    assert said.endswith(
        f"the head is of other classes, so set model.pretrained {weights}, which makes a new one"
    )
    tiny.fit(**other, model__pretrained=weights)


class Watch(Callback):
    """U of each site in training and in validation, by epoch."""

    seen: ClassVar[list[tuple[str, int, list[int]]]] = []

    def _note(self, what, trainer, module):
        u = [layer.competitors for layer in competitions(module.backbone).values()]
        Watch.seen.append((what, trainer.current_epoch, u))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == trainer.num_training_batches - 1:  # after a validation in mid-epoch
            self._note("train", trainer, pl_module)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self._note("validate", trainer, pl_module)


def test_units_compete_by_stages(tiny):
    Watch.seen.clear()
    # Of 96 units 6 and 24 are the divisors nearest to 5 and 20; one site has 4 in the end, and never more.
    stages = {
        "model__staged_competitors": "{1: 2, 2: 5, 3: 20}",
        "model__competitors": "{'*.0.*': 24, '*': 4}",
    }
    more = ["--trainer.val_check_interval=0.5", "--trainer.num_sanity_val_steps=1"]
    train.main(
        [*tiny.args(**stages, trainer__max_epochs=4), *more, "--trainer.callbacks+=tests.test_finetune.Watch"]
    )
    assert [(epoch, u) for what, epoch, u in Watch.seen if what == "train"] == [
        (0, [2, 2]), (1, [6, 4]), (2, [24, 4]), (3, [24, 4]),
    ]  # fmt: skip
    validated = [u for what, _, u in Watch.seen if what == "validate"]
    assert validated == [[24, 4]] * 9  # twice an epoch and once before
    trained = Classifier.from_checkpoint(run_checkpoint(tiny.folder))
    assert [layer.competitors for layer in competitions(trained.backbone).values()] == [24, 4]


def test_a_run_in_stages_resumes_in_its_stage(tiny):
    stop = ["--trainer.callbacks+=tests.test_train.StopAt", "--trainer.callbacks.epoch=1"]
    with pytest.raises(Stopped):
        train.main([*tiny.args(model__staged_competitors="{2: 2}"), *stop])
    config, last = tiny.folder / "config.yaml", tiny.folder / "checkpoints" / "last.ckpt"
    Watch.seen.clear()
    again = ["--trainer.callbacks=null", "--trainer.callbacks+=tests.test_finetune.Watch"]
    train.main(["fit", f"--config={config}", f"--ckpt_path={last}", *again])
    assert [(epoch, u) for what, epoch, u in Watch.seen if what == "train"] == [(1, [2, 2]), (2, [24, 24])]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"staged_competitors": "{0: 2}"}, "epochs are at least 1 and U at least 2, not 0: 2"),
        ({"staged_competitors": "{1: 1}"}, "epochs are at least 1 and U at least 2, not 1: 1"),
        (
            {"staged_competitors": "{1: 2}", "competitors": "null"},
            "staged_competitors needs competing units; this network has none",
        ),
        ({"staged_competitors": "{1: 24}"}, "staged_competitors are fewer than the 24 of the end, not 24"),
        (
            {"staged_competitors": "{3: 2}"},
            "staged_competitors end at epoch 3 and trainer.max_epochs is 3, so the network would never train",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused(tiny, options, said):
    assert said in refused(train.main, tiny.args(**{f"model__{k}": v for k, v in options.items()}))


def test_stages_take_a_divisor_of_each_width():
    layers = {LWTA(u, 1).competition: units for u, units in ((24, 96), (10, 70), (3, 9))}
    stages = Stages(layers, {5: 8, 2: 3})
    found = []
    for epoch in (0, 1, 2, 4, 5):
        stages.set(epoch)
        found.append([layer.competitors for layer in layers])
    assert found == [[3, 2, 3], [3, 2, 3], [8, 7, 3], [8, 7, 3], [24, 10, 3]]
    stages.set(0)
    stages.finish()
    assert [layer.competitors for layer in layers] == [24, 10, 3]
