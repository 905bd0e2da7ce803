"""Explain one input: which units fired, against whom, where, and what each changed in the decision."""

from collections.abc import Mapping, Sequence

import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from lwta.dissect.activations import Readout
from lwta.dissect.counterfactual import counterfactual
from lwta.dissect.decision import Target, at_least_single, find_target, observed
from lwta.dissect.explanation import Explanation, FiredUnit, LayerExplanation, Rival
from lwta.dissect.intervene import Change, excluded, silenced
from lwta.dissect.maps import Grids, position_maps
from lwta.dissect.stability import stability
from lwta.functional import to_blocks
from lwta.layers import LWTA, Firing

_RIVALS = 2  # named of each block


@torch.compiler.set_stance("force_eager")
def explain(
    model: nn.Module,
    image: Tensor,
    sites: Mapping[str, int],
    readout: Readout,
    *,
    class_names: Sequence[str],
    grids: Grids = lambda positions: None,
    name: str = "image",
    target: int | None = None,
    against: int | None = None,
    top: int = 16,
    samples: int = 0,
    change: Change = Change(),  # noqa: B008
    change_sites: Mapping[str, int] | None = None,
    batch_size: int = 64,
) -> Explanation:
    """Explain the decision of ``model`` on one image, with argmax competition.

    Its units carry numbers; :meth:`Explanation.label` names them. A compiled model runs eagerly meanwhile:
    what is already compiled does not see the hooks that silence units.

    Args:
        model: classifier of images (n, 3, H, W) into logits (n, C), in evaluation mode.
        image: (3, H, W), as the model takes it.
        sites: layer name -> axis of its units.
        readout: what is read of each layer.
        class_names: C names.
        grids: number of patches -> (rows, columns) for token layers; maps carry their own.
        name: of the image, for the reader.
        target: class to explain; None takes the predicted one.
        against: class to set it against; None takes the mean over classes.
        top: units of each layer that are silenced and excluded, and whose rivals and maps are shown: those
            that contribute most. All that fired are listed.
        samples: draws of the winners in all competing layers, beside the argmax.
        change: run the image once more with this changed.
        change_sites: axis of the units of the layers silenced there; ``sites`` where not given.
        batch_size: images per pass while silencing.

    Raises:
        InputError: where the target is not a class, or the model is no classifier of these classes; where
            ``change`` names a unit that is not there.
    """
    images = image[None].to(next(model.parameters()).device)
    calls, logits = observed(model, images, sites)
    probabilities, order = logits.softmax(-1)[0].sort(descending=True, stable=True)
    asked = find_target(int(order[0]), target, against, len(order), class_names, name)
    base = float(asked.score(logits))
    modules = [model.get_submodule(layer) for layer in sites]
    layers = []
    attributions = _attributions(model, images, modules, asked)
    for module, (layer, firing), attribution in zip(modules, calls.items(), attributions, strict=True):
        explained = _layer(layer, module, firing, readout, attribution, grids, top)
        _measure(model, images, explained, explained.fired[:top], firing.dim, asked, base, batch_size)
        layers.append(explained)
    best = zip(order[:5].tolist(), probabilities.tolist(), strict=False)
    found = Explanation(
        image=name,
        classes=[(str(class_names[k]), p) for k, p in best],
        target=str(class_names[asked.index]),
        against=None if asked.against is None else str(class_names[asked.against]),
        score=base,
        readout=readout.kind,
        layers=layers,
    )
    if samples:
        found.stability = stability(
            model, images, calls, readout, layers, asked, class_names, samples, batch_size
        )
    if change:
        axes = sites if change_sites is None else change_sites
        found.counterfactual = counterfactual(
            model, images, calls, readout, asked, class_names, logits, change, axes
        )
    return found


def _attributions(model: nn.Module, images: Tensor, modules: list[nn.Module], target: Target) -> list[Tensor]:
    """Gradient times activation of each layer, in one backward pass; 0 where nothing leads to the logits."""

    def score(x: Tensor) -> Tensor:  # that depends on the image, so that there is something to differentiate
        return target.score(model(x.clone().requires_grad_().clone()))

    attribution = LayerGradientXActivation(score, modules)  # type: ignore[arg-type]
    found: list[Tensor] = attribution.attribute(images, grad_kwargs={"materialize_grads": True})  # type: ignore[assignment]
    return [one.detach() for one in found]


def _layer(
    layer: str,
    module: nn.Module,
    firing: Firing,
    readout: Readout,
    attribution: Tensor,
    grids: Grids,
    top: int,
) -> LayerExplanation:
    read = readout.read(firing)
    values, won = read.values[0], read.won[0]
    rates = readout.positions(firing.fired, firing.dim)[0].float().mean(0)  # (D,)
    maps = position_maps(firing, readout, grids)
    contribution = at_least_single(attribution).movedim(firing.dim, -1).flatten(0, -2).sum(0)
    units = won.nonzero()[:, 0]
    units = units[contribution[units].abs().argsort(descending=True, stable=True)]
    fired = [
        FiredUnit(
            unit=unit,
            value=float(values[unit]),
            win_rate=float(rates[unit]),
            contribution=float(contribution[unit]),
        )
        for unit in units.tolist()
    ]
    for unit in fired[:top]:
        unit.map = None if maps is None else maps[0, :, :, unit.unit].float().cpu().numpy()
        if isinstance(module, LWTA):
            unit.probability, unit.rivals = _rivals(module, firing, readout, unit.unit)
    competition = module.competition if isinstance(module, LWTA) else None
    return LayerExplanation(
        layer=layer,
        units=len(won),
        competitors=competition.competitors if competition else None,
        fired_per_position=float(rates.mean()),
        fired_ever=float(won.float().mean()),
        contribution=float(contribution.sum()),
        silenced=0.0,
        fired=fired,
        noise=competition.noise if competition else None,
    )


def _rivals(module: LWTA, firing: Firing, readout: Readout, unit: int) -> tuple[float, list[Rival]]:
    """Winner probability of a unit that fired, and the nearest of its block.

    At the position read; where positions are pooled, at the one whose value the readout shows
    (``max``, ``patches``) or where the unit fired hardest (``mean``).
    """
    assert firing.inputs is not None
    competition = module.competition
    fired = readout.positions(firing.fired, firing.dim)[0, :, unit]
    values = readout.positions(firing.values, firing.dim)[0, :, unit]
    strength = values if readout.peak else values.abs()
    where = strength.masked_fill(~fired, -torch.inf).argmax()
    h = at_least_single(readout.positions(firing.inputs, firing.dim)[0, where])  # (D,), as they compete
    block, place = divmod(unit, competition.competitors)
    logits = (competition.logit_scale * to_blocks(h, competition.competitors, 0))[block]
    probabilities = (logits / (competition.noise or 1.0)).softmax(0)  # s = 0 has none; at s = 1 then
    order = [k for k in logits.argsort(descending=True, stable=True).tolist() if k != place]
    rivals = [
        Rival(
            unit=block * len(logits) + k,
            margin=float(logits[place] - logits[k]),
            probability=float(probabilities[k]),
        )
        for k in order[:_RIVALS]
    ]
    return float(probabilities[place]), rivals


@torch.no_grad()
def _measure(
    model: nn.Module,
    images: Tensor,
    explained: LayerExplanation,
    units: Sequence[FiredUnit],
    dim: int,
    target: Target,
    base: float,
    batch_size: int,
) -> None:
    """Silence and exclude units one by one, and silence all of the layer together."""
    layer, score = explained.layer, lambda n: target.score(model(images.repeat(n, 1, 1, 1)))
    for start in range(0, len(units), batch_size):
        batch = units[start : start + batch_size]
        numbers = torch.tensor([[unit.unit] for unit in batch])
        with silenced(model, layer, numbers, dim):
            for unit, found in zip(batch, score(len(batch)).tolist(), strict=True):
                unit.silenced = found - base
        if explained.competitors is not None:
            with excluded(model, layer, numbers):
                for unit, found in zip(batch, score(len(batch)).tolist(), strict=True):
                    unit.excluded = found - base
    with silenced(model, layer, torch.arange(explained.units)[None], dim):
        explained.silenced = float(score(1)) - base
