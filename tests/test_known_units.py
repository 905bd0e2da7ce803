"""Units that were set by hand to known concepts: their labels are found, and shuffled ones are not."""

import math

import pytest

import dissect
from lwta.dissect.evaluation import read_evaluation
from lwta.dissect.resampling import KEPT
from models.shapes import CONCEPTS
from tests.toy import of_folder, write_module

MODULE = """
import torch
from torch import nn
from torchvision.transforms.functional import to_tensor

from models.shapes import Shapes

MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]


class Known(nn.Module):
    '''Recognises the images it was shown, and fires the units of the concepts that these show.'''

    def __init__(self, copies):
        super().__init__()
        worlds = [Shapes("validation[:1500]", 32), Shapes("validation[10000:11000]", 32)]
        pixels = torch.stack([to_tensor(image) for world in worlds for image, _ in world])
        shown = torch.cat([world.presence() for world in worlds]).repeat(1, copies)
        self.register_buffer("images", self.code(pixels))
        strength = 1 + torch.rand(shown.shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("responses", shown * strength)
        width = shown.shape[1]
        self.fc, self.act, self.head = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def code(self, pixels):
        return nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1)

    def forward(self, x):
        nearest = torch.cdist(self.code(x * STD + MEAN), self.images).argmin(1)
        return self.head(self.act(self.fc(self.responses[nearest])))


def net(copies=1):
    return Known(copies)
"""


@pytest.mark.parametrize("copies", [1, 3])
def test_labels_of_known_units_are_recovered_and_at_chance_once_shuffled(tmp_path, monkeypatch, copies):
    write_module(tmp_path, "known", MODULE)
    monkeypatch.chdir(tmp_path)
    network = [
        "--model=known:net",
        f"--model_args={{copies: {copies}}}",
        "--weights=random",
        "--image_size=32",
    ]
    said = ["--probe=shapes:validation[:1500]", "--concepts=shapes", "--clip=shapes", "--layers=act"]
    dissect.main(["label", *network, *said, "--out=out"])
    dissect.main(
        ["evaluate", *network, "--probe=shapes:validation[10000:11000]", "--resamples=3", "--out=out"]
    )
    table, identity, *_ = (labels := of_folder("out")).table, labels.identity
    found = read_evaluation("out", identity)
    assert found is not None
    assert found.truth is not None
    assert table["label"].tolist() == CONCEPTS * copies
    assert (found.truth.selective, found.truth.true_share) == (len(CONCEPTS) * copies, 1.0)
    assert found.truth.shuffled_share == pytest.approx(1 / len(CONCEPTS))
    assert found.scored == found.discoveries == len(table)
    for metric, chance in (("correlation", 0.0), ("auroc", 0.5)):
        row = found.mean(metric)
        assert row["label"] >= 0.9
        for control in ("shuffled", "random", "constant"):
            # The constant label is right for one unit of each set; the others are right at random.
            assert row[control] == pytest.approx(chance, abs=max(0.05, 3 * row[f"{control}_error"])), control
    assert found.pairs is not None
    assert found.pairs.selective == 0
    assert math.isnan(found.pairs.named_share)
    for name in KEPT:  # of as many units for each concept
        assert found.mean(name)["label"] == 1
        assert found.mean(name)["shuffled"] == pytest.approx(1 / len(CONCEPTS), rel=0.7)
    by_chance = found.by_control["shuffled"], found.by_control["random"]
    assert max(by_chance) <= 0.1 * len(table)  # 1 in 44 is dealt its own
