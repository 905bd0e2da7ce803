"""Who fired, of which networks are compared: every number against a plain loop."""

import numpy as np
import pytest
import torch
from torch import nn

from lwta.layers import watch
from models.activity import ActivityMeter
from models.backbone import create_backbone
from models.sites import Site
from models.swap import SwapReport


def test_activity_is_what_loops_over_images_units_and_positions_count():
    torch.manual_seed(0)
    backbone, report = create_backbone(
        "resnet10t", 3, backbone_args={"channels": [16, 16, 24, 32]}, competitors=8, placement="inner"
    )
    backbone.eval()
    assert report.left
    meter, outputs = ActivityMeter(report), {}
    for name in meter.sites:
        backbone.get_submodule(name).register_forward_hook(
            lambda module, inputs, out, name=name: outputs.setdefault(name, []).append(out.clone())
        )
    with torch.no_grad():
        for count in (3, 2):
            with watch(backbone, meter.dims) as calls:
                backbone(torch.randn(count, 3, 32, 32))
            meter.update(calls, count)
    competing = [site.name for site in report.swapped]
    everywhere = {name: torch.cat(parts).numpy() for name, parts in outputs.items()}  # (N, D, H, W)
    seen = meter.compute()
    for names, position, ever in (
        (competing, seen.position_competing, seen.ever_competing),
        (list(everywhere), seen.position_all, seen.ever_all),
    ):
        maps = [unit for name in names for image in everywhere[name] for unit in image]
        assert ever == pytest.approx(np.mean([bool((unit != 0).any()) for unit in maps]))
        assert position == pytest.approx(sum((u != 0).sum() for u in maps) / sum(u.size for u in maps))
    assert seen.position_competing == pytest.approx(1 / 8)
    assert seen.ever_competing > 1.5 / 8
    ratios, weights = [], []
    for name in competing:
        for at in np.moveaxis(everywhere[name].astype(np.float64), 1, -1).reshape(
            -1, everywhere[name].shape[1]
        ):
            ratios.append((at**2).sum() ** 2 / (at.size * (at**4).sum()))
            weights.append(at.size)
    assert seen.participation_ratio == pytest.approx(np.average(ratios, weights=weights), rel=1e-5)
    units = [everywhere[name][:, unit] for name in competing for unit in range(everywhere[name].shape[1])]
    assert (seen.dead_units, seen.units) == (sum(not unit.any() for unit in units), len(units))
    assert (seen.sites_competing, seen.sites_all, seen.sites_uncounted) == (
        len(competing),
        len(everywhere),
        0,
    )


class Shared(nn.Module):
    """One ReLU called at two widths, one on images folded with windows, one whose axis nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(3, 4), nn.Linear(4, 6)
        self.shared, self.folded, self.unknown = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.shared(self.wide(self.shared(self.narrow(x))))
        return self.unknown(x - 1) + self.folded(x.reshape(-1, 3)).reshape(x.shape)


def test_a_module_called_twice_is_two_sites_and_sites_without_known_axes_are_left_out():
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(5, 3)
    found = [
        Site("shared", "ReLU", -1, (5, 6), 2),
        Site("folded", "ReLU", -1, (10, 3), 1),
        Site("unknown", "ReLU", None, (5, 6), 1),
    ]
    meter = ActivityMeter(SwapReport([], found, found))
    with torch.no_grad(), watch(model, meter.dims) as calls:
        model(x)
    meter.update(calls, len(x))
    first = model.narrow(x).relu()
    second = model.wide(first).relu()
    seen = meter.compute()
    assert seen.units == 4 + 6
    assert seen.sites_uncounted == 2
    fired = int((first > 0).sum() + (second > 0).sum())
    assert seen.ever_all == pytest.approx(fired / (5 * 10))  # one position for each image
    fired += int((second > 1).sum() + (second > 0).sum())
    assert seen.position_all == pytest.approx(fired / (5 * (4 + 6 + 6 + 6)))
    dead = (~(first > 0).any(0)).sum() + (~(second > 0).any(0)).sum()
    assert seen.dead_units == dead
